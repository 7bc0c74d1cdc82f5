"""Learning-rate schedules as transformers has them: the factor on the learning rate at each optimizer step, counted from 0."""
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)


def _factors(make, total_steps: int, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule = make(optimizer, **settings)
    factors = []
    for _ in range(total_steps):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


def schedules() -> list[dict]:
    found = []
    for total, warmup in ((1, 0), (7, 0), (10, 1), (20, 5), (5, 5), (6, 9)):
        spans = dict(num_warmup_steps=warmup, num_training_steps=total)
        floor = lambda o, **s: get_cosine_with_min_lr_schedule_with_warmup(o, min_lr_rate=0.1, **s)
        for kind, min_lr_ratio, make, settings in (
            ("constant", 0.0, get_constant_schedule_with_warmup, dict(num_warmup_steps=warmup)),
            ("linear", 0.0, get_linear_schedule_with_warmup, spans),
            ("cosine", 0.0, get_cosine_schedule_with_warmup, spans),
            ("cosine", 0.1, floor, spans),
        ):
            found.append(dict(kind=kind, total_steps=total, warmup_steps=warmup, min_lr_ratio=min_lr_ratio, factors=_factors(make, total, **settings)))
    return found
