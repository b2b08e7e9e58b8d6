"""PyTorch on the CPU, two threads: LoRA of rank 16 on q, k, v, o of a Llama model in transformers + peft, AdamW, batch 1. python torch_lora.py FOLDER"""

import json
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(2)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def say(x):
    print("answer " + json.dumps(x), flush=True)


say({"ready": True, "version": torch.__version__})
for line in sys.stdin:
    q = json.loads(line)
    if q["what"] == "rss":
        # The high-water mark of this process itself: getrusage also counts what its parent had when it forked.
        mark = next(row for row in open("/proc/self/status") if row.startswith("VmHWM"))
        say({"mib": int(mark.split()[1]) / 1024})
        continue
    ids = torch.tensor([[(i * 7919 + 13) % 40000 for i in range(q["n"])]])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.perf_counter() - start) * 1e3)
    say({"ms": min(times[1:])})
