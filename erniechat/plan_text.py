"""A memory plan for people and for scripts: what goes where, and what to expect of it."""

from typing import Any

from erniechat.memory_plan import MemoryPlan, Speeds
from erniechat.sizes import shown_size


def plan_facts(plan: MemoryPlan, speeds: Speeds | None = None) -> dict[str, Any]:
    """The plan as JSON has it: bytes, shares from 0 to 1, tokens a second or None.

    Args:
        plan: Of a model.
        speeds: Of this machine; None if they are not known.
    """
    return {
        "places": {
            place: {
                "budget_nbytes": plan.budgets[place].nbytes if place in plan.budgets else None,
                "nbytes": plan.nbytes(place),
                "items": {item.name: item.nbytes for item in plan.items.get(place, ())},
                "experts": plan.num_experts(place),
                "hit_rate": plan.hit_rate(place),
                "nbytes_per_token": round(plan.nbytes_per_token(place)),
            }
            for place in plan.places
        },
        "expert_nbytes": plan.sizes.expert_nbytes,
        "context": {
            "planned": plan.context_length,
            "longest": plan.longest_context,
            "experts_per_1000_tokens": 1000 * plan.leaving_per_token if plan.grows else 0.0,
        },
        "tokens_per_second": None if speeds is None else plan.tokens_per_second(speeds),
    }


def format_plan(plan: MemoryPlan, speeds: Speeds | None = None) -> str:
    """The plan as a table, a block for each place, and the expected speed."""
    lines: list[str] = []
    for place in plan.places:
        if place == "disk" and not plan.num_experts(place):
            continue
        budget = plan.budgets.get(place)
        limit = "" if budget is None else f" of {shown_size(budget.nbytes)}"
        source = "" if budget is None else " asked for" if budget.asked else " free"
        lines.append(f"{place}: {shown_size(plan.nbytes(place))}{limit}{source}")
        rows = [(item.name, item.nbytes, "") for item in plan.items.get(place, ())]
        if plan.sizes.num_experts:
            num = plan.num_experts(place)
            share = f"{100 * plan.hit_rate(place):.1f} % of their uses"
            rows.append((f"{num:,} experts", num * plan.sizes.expert_nbytes, share))
        for name, nbytes, note in rows:
            lines.append(f"  {name:<32}{shown_size(nbytes):>10}  {note}".rstrip())
    if plan.grows:
        lines.append(growth_text(plan))
    reads = [
        f"{shown_size(plan.nbytes_per_token(place))} from {place}"
        for place in plan.places
        if plan.nbytes_per_token(place)
    ]
    lines.append(f"a token reads {', '.join(reads)}")
    if speeds is None:
        lines.append("expected speed: not known; erniechat doctor measures this machine")
    else:
        lines.append(f"expected speed: {plan.tokens_per_second(speeds):.1f} tok/s")
    return "\n".join(lines) + "\n"


def growth_text(plan: MemoryPlan) -> str:
    """What a longer conversation than planned will cost."""
    return (
        f"context: {plan.context_length:,} tokens planned, grows to {plan.longest_context:,}; "
        f"{1000 * plan.leaving_per_token:.1f} experts leave the GPU for each 1,000 tokens more"
    )
