"""Train the mini model from scratch on one GPU, or for a few steps on a CPU as a test.

    python -m erniechat.mini.train --facts facts.json --out checkpoint --seconds 900

About 15 minutes on an H200. Muon for the matrices, AdamW for embedding, norms and routers; bfloat16
compute on float32 weights; constant learning rate, then linear decay. The routers are balanced
without an auxiliary loss: after each step every expert's correction bias moves a little against its
load. Data is made on the fly by worker processes; a batch depends on the seed alone.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from erniechat.mini import checkpoint_folder
from erniechat.mini.hub import load_checkpoint, save_checkpoint
from erniechat.mini.model import Model
from erniechat.mini.output import report
from erniechat.mini.training import Trainer, check_attention
from erniechat.mini.workers import Batches

NUM_COMPILE_STEPS = 20  # the clock of the schedule starts after them, once everything is compiled
REPORT_EVERY = 100


def _progress(args: argparse.Namespace, step: int, elapsed_seconds: float) -> float:
    """From 0 to 1 over the schedule, by steps or by the clock."""
    return float(step / args.steps if args.steps else elapsed_seconds / args.seconds)


def _learning_rate_factor(args: argparse.Namespace, step: int, progress: float) -> float:
    """Warm-up, then constant, then linear decay."""
    warm: float = min(1.0, (step + 1) / args.warmup)
    decayed: float = (1 - progress) / (1 - args.stable) + 0.005
    return warm * min(1.0, decayed)


def _save(trainer: Trainer, args: argparse.Namespace, log: object) -> None:
    save_checkpoint(trainer.model, args.out)
    (Path(args.out) / "train_log.json").write_text(json.dumps(log), encoding="utf-8")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _report_step(
    args: argparse.Namespace, log: list[list[float]], elapsed_seconds: float, trainer: Trainer
) -> None:
    step, loss = log[-1]
    if step % 500 and step > 200 and not args.eager:
        return
    timed_tokens = (step - NUM_COMPILE_STEPS) * args.tokens
    speed = f", {timed_tokens / elapsed_seconds / 1e6:.2f} M/s" if elapsed_seconds else ""
    report(
        f"step {step:.0f} loss {loss:.4f} {elapsed_seconds:.0f} s "
        f"{step * args.tokens / 1e6:.0f} M tokens{speed}, "
        f"busiest expert {trainer.busiest_expert():.2f}"
    )


def train(trainer: Trainer, batches: Batches, args: argparse.Namespace) -> None:
    """Run the schedule; write snapshots now and then, and the checkpoint and its log at the end."""
    device = trainer.device
    began, elapsed_seconds, step = 0.0, 0.0, 0
    log: list[list[float]] = []
    last_save = time.monotonic()
    while True:
        if step == NUM_COMPILE_STEPS:
            began = _now(device)
        elapsed_seconds = time.monotonic() - began if step >= NUM_COMPILE_STEPS else 0.0
        progress = _progress(args, step, elapsed_seconds)
        if progress >= 1:
            break
        trainer.step(*batches.next(), factor=_learning_rate_factor(args, step, progress))
        step += 1
        if step % REPORT_EVERY == 0 or step in (5, NUM_COMPILE_STEPS):
            log.append([step, trainer.mean_loss(reset=step % REPORT_EVERY == 0)])
            _report_step(args, log, elapsed_seconds, trainer)
            if time.monotonic() - last_save > args.save_every:
                last_save = time.monotonic()
                _save(trainer, args, log)
    tokens = step * args.tokens
    summary = {"steps": step, "tokens": tokens, "seconds": elapsed_seconds, "args": vars(args)}
    _save(trainer, args, {**summary, "loss": log})
    loss = log[-1][1] if log else float("nan")
    report(
        f"done: {step} steps, {tokens / 1e6:.0f} M tokens, {elapsed_seconds:.0f} s, loss {loss:.4f}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--facts", default="facts.json")
    add("--tokenizer", default=str(checkpoint_folder() / "tokenizer.json"))
    add("--out", required=True, help="folder for the checkpoint")
    add("--seconds", type=float, default=900, help="length of the schedule; or use --steps")
    add("--steps", type=int, default=0)
    add("--tokens", type=int, default=65536, help="tokens of one step")
    add("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)))
    add("--seed", type=int, default=0)
    add("--lr", type=float, default=0.02, help="of Muon")
    add("--adam-lr", type=float, default=0.003)
    add("--warmup", type=int, default=300, help="steps")
    add("--eager", action="store_true", help="do not compile (for short runs)")
    add("--stable", type=float, default=0.5, help="share of the schedule before the decay")
    add("--bias-step", type=float, default=0.001, help="step of the routers' correction bias")
    add("--mixture", default="", help="JSON file {generator: weight} in place of the usual one")
    add("--config", default="", help="config.json of another size")
    add("--resume", default="", help="start from the weights of this checkpoint")
    add("--save-every", type=float, default=240, help="seconds between snapshots")
    return parser


def _start(args: argparse.Namespace, device: torch.device) -> Model:
    """The model to train: new, or from a checkpoint."""
    if args.resume:
        return load_checkpoint(args.resume, device=device)
    config = json.loads(Path(args.config).read_text(encoding="utf-8")) if args.config else None
    model = Model(config)
    model.initialise(args.seed)
    return model.to(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    args = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Batches(args, device) as batches:  # the workers start before CUDA is touched
        torch.manual_seed(args.seed)
        if device.type == "cuda":
            errors = check_attention(device)
            report("attention error " + " ".join(f"{error:.4f}" for error in errors))
            torch.set_float32_matmul_precision("high")
        trainer = Trainer(
            _start(args, device),
            learning_rate=args.lr,
            adam_learning_rate=args.adam_lr,
            bias_step=args.bias_step,
        )
        if device.type == "cuda" and not args.eager:
            trainer.compile()
        train(trainer, batches, args)


if __name__ == "__main__":
    main()
