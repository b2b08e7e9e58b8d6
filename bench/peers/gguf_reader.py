"""transformers on a GGUF file, by its own reader: python gguf_reader.py FILE"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(2)
folder, file = os.path.split(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()


def say(x):
    print("answer " + json.dumps(x), flush=True)


def greedy(q):
    ids = list(q["ids"])
    with torch.inference_mode():
        for _ in range(q["count"]):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
    return {"ids": ids[len(q["ids"]) :]}


def tokenize(q):
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    return {"ids": [tokenizer(t, add_special_tokens=False)["input_ids"] for t in q["texts"]]}


say({"ready": True})
for line in sys.stdin:
    q = json.loads(line)
    try:
        say({"greedy": greedy, "tokenize": tokenize}[q["what"]](q))
    except Exception as e:  # told to whoever asked
        say({"error": repr(e)})
