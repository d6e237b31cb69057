# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What every stage of training shares: a schedule by steps, checkpoints, resuming, progress,
curves.
"""

import json
import sys
import time
from math import cos, pi
from pathlib import Path

import torch
import torch.distributed as dist

DEFAULT_SEED = 1


def checkpoint(path, seed):
    """What a stage saved; the program ends in words where that has another seed."""
    state = torch.load(path, weights_only=True)
    told = state.get('seed', DEFAULT_SEED)  # older ones do not tell it
    if told != seed:
        sys.exit(
            f'{path} is of seed {told}, --seed is {seed}; what was trained with one seed is not '
            'gone on with by another. Give another --out.'
        )
    return state


def autocast():
    """bfloat16 matrix products: two to four times the speed of float32 on CPUs that have them; on
    others, where they take fifty times as long, float32.
    """
    return torch.autocast('cpu', torch.bfloat16, enabled=has_bfloat16())


def has_bfloat16():
    """Whether this CPU multiplies in bfloat16."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Muon(torch.optim.Optimizer):
    """Muon as torch.optim.Muon, whose bfloat16 products only some CPUs are fast in."""

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(params, {'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum})

    @torch.no_grad()
    def step(self):
        """Step every matrix by its momentum, turned into the nearest orthogonal one."""
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault('momentum_buffer', torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group['momentum'])
                update = orthogonal(p.grad.lerp(buffer, group['momentum']))
                p.mul_(1 - group['lr'] * group['weight_decay'])
                p.add_(update, alpha=-group['lr'] * 0.2 * max(p.shape) ** 0.5)


def orthogonal(matrix, steps=5):
    """Return about the orthogonal matrix nearest to one (m, n), by Newton-Schulz iterations."""
    x = matrix.bfloat16() if has_bfloat16() else matrix
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def optimizers(module, peak, own_kind=()):
    """[Muon, AdamW]: hidden matrices turn as a whole (Muon), the rest steps entry by entry.

    `own_kind`: matrices that are tables or meet
    the input, not maps between hidden states; those stay with AdamW, as do norms, biases and
    heads.
    """
    apart = {id(p) for p in own_kind}
    hidden = [p for p in module.parameters() if p.dim() == 2 and id(p) not in apart]
    chosen = {id(p) for p in hidden}
    rest = [p for p in module.parameters() if id(p) not in chosen]
    return [
        Muon(hidden, lr=peak, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=peak, weight_decay=0.02, betas=(0.9, 0.98)),
    ]


class Run:
    """One stage. Files: <name>.pt (checkpoint, replaced whole) and <name>.jsonl (curve) in
    `directory`.

    `rate`: share of the peak rate; `begin`: what counts as done of a curriculum before the first
    step. With several processes (torch.distributed started) gradients are averaged; only rank 0
    writes.
    """

    def __init__(self, directory, name, seed, rate=1.0, begin=0.0, save_every_s=120):
        self.path = Path(directory) / f'{name}.pt'
        self.curve = Path(directory) / f'{name}.jsonl'
        self.name, self.seed, self.save_every_s = name, seed, save_every_s
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rate, self.begin = rate, begin
        self.losses, self.fraction = [], begin

    def steps(self, module, optimizer, steps, peak, warm_up=80, floor=0.03):
        """Yield the numbers of the steps still to do, with the rate set: warm-up, then a
        cosine.
        """
        done, cpu_before = self._resume(module, optimizer)
        self.total, self.first, self.started = steps, done, time.monotonic()
        self.cpu_before, self.cpu_start = cpu_before, time.process_time()
        saved = time.monotonic()
        for step in range(done, steps):
            self.fraction = self.begin + (1 - self.begin) * step / steps
            rate = floor + (1 - floor) * (1 + cos(pi * step / steps)) / 2
            rate *= self.rate * min(1, (step + 1) / warm_up)
            for one in self._each(optimizer):
                for group in one.param_groups:
                    group['lr'] = peak * rate
            yield step
            late = time.monotonic() - saved > self.save_every_s
            if self.rank == 0 and (late or step + 1 == steps):
                self.save(step + 1, module, optimizer)
                saved = time.monotonic()

    @staticmethod
    def _each(optimizer):
        return optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]

    def _resume(self, module, optimizer):
        if not self.path.exists():
            return 0, 0.0
        state = checkpoint(self.path, self.seed)
        module.load_state_dict(state['module'])
        for one, saved in zip(self._each(optimizer), state['optimizers']):
            one.load_state_dict(saved)
        return state['step'], state['cpu_s']

    def save(self, step, module, optimizer):
        state = {
            'step': step,
            'seed': self.seed,
            'cpu_s': self.cpu_s(),
            'module': module.state_dict(),
            'optimizers': [one.state_dict() for one in self._each(optimizer)],
        }
        part = self.path.with_suffix('.part')
        torch.save(state, part)
        part.replace(self.path)

    def cpu_s(self):
        """CPU seconds of this process in this stage, those before a restart included."""
        return self.cpu_before + time.process_time() - self.cpu_start

    def update(self, loss, module, optimizer, limit=1.0):
        for one in self._each(optimizer):
            one.zero_grad(set_to_none=True)
        loss.backward()
        weights = list(module.parameters())
        if self.world > 1:
            for p in weights:  # a rank whose batch did not touch p must still send its share
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            flat = torch.cat([p.grad.flatten() for p in weights])
            dist.all_reduce(flat)
            pieces = flat.div_(self.world).split([p.numel() for p in weights])
            for p, piece in zip(weights, pieces):
                p.grad = piece.view_as(p)
        torch.nn.utils.clip_grad_norm_(weights, limit)
        for one in self._each(optimizer):
            one.step()
        self.losses.append(loss.item())

    def due(self, step, every):
        """Print progress every now and then; true where `every` steps are done, or all."""
        if self.rank == 0 and (step + 1) % 50 == 0:
            left_s = (
                (time.monotonic() - self.started)
                / (step + 1 - self.first)
                * (self.total - step - 1)
            )
            mean = sum(self.losses[-50:]) / len(self.losses[-50:])
            print(
                f'{self.name}: step {step + 1} of {self.total}, loss {mean:.3f}, '
                f'{self.cpu_s():.0f} CPU-s, {left_s / 60:.0f} min left',
                flush=True,
            )
        return (step + 1) % every == 0 or step + 1 == self.total

    def report(self, step, figures):
        if self.rank != 0:
            return
        recent = self.losses[-100:]
        row = {
            'step': step + 1,
            'cpu_s': round(self.cpu_s(), 1),
            'loss': round(sum(recent) / len(recent), 4),
            **figures,
        }
        with self.curve.open('a') as out:
            out.write(json.dumps(row) + '\n')
        print(f'{self.name}: {rounded(figures)}', flush=True)


def rounded(figures):
    if isinstance(figures, dict):
        return {k: rounded(v) for k, v in figures.items()}
    return round(figures, 3) if isinstance(figures, float) else figures
