"""What transformers + peft make of what `npm run -s bench -- real` did: greedy ids and the loss curve of a LoRA, on the decoded weights of the GGUF file.
Needs torch, transformers, peft (tests/fixtures/requirements.txt) and gguf. Run: python bench/real.py FILE.gguf real"""
import json, os, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

file, folder = sys.argv[1], sys.argv[2]
told = json.load(open(os.path.join(folder, "weft.json")))
model = AutoModelForCausalLM.from_pretrained(os.path.dirname(os.path.abspath(file)), gguf_file=os.path.basename(file), dtype=torch.float32).eval()
same, others = 0, []
for g in told["greedy"]:
    ids = list(g["input"])
    for want in g["ids"]:
        with torch.no_grad():
            top = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
        if int(top.indices[0]) != want:
            others.append((g["prompt"], float(top.values[0] - top.values[1])))
            break
        ids.append(want)
    else:
        same += 1
print(f"{same} of {len(told['greedy'])} prompts have the same greedy ids; the others' gaps between the first two logits: {others}")

curve = told["curve"]
model = PeftModel.from_pretrained(model, os.path.join(folder, "lora-start"), is_trainable=True).train()
params = [p for p in model.parameters() if p.requires_grad]
opt = torch.optim.AdamW(params, lr=curve["learningRate"], weight_decay=0.0, eps=1e-8)
rows, n = curve["rows"], curve["batchSize"]
worst = 0
for step, want in enumerate(curve["losses"]):
    batch = [rows[(step * n + i) % len(rows)] for i in range(n)]
    total = sum(sum(1 for x in r["labels"][1:] if x != -100) for r in batch)
    opt.zero_grad()
    loss = 0
    for r in batch:
        logits = model(torch.tensor([r["input_ids"]])).logits[0, :-1]
        part = torch.nn.functional.cross_entropy(logits, torch.tensor(r["labels"][1:]), ignore_index=-100, reduction="sum") / total
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    opt.step()
    worst = max(worst, abs(loss - want))
print(f"{len(curve['losses'])} LoRA steps: the loss curves differ by at most {worst:.2e} (first {curve['losses'][0]:.4f}, last {curve['losses'][-1]:.4f})")
