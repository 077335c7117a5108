"""Was the selection right? A token whose scores are too close to call may route either way.   Spec 7.12"""

from typing import NamedTuple

import numpy as np

from .stages import is_made


class Selected(NamedTuple):
    """What is said of a selection."""

    indices: object  # what the next stages read, or None for the law's
    wrong: list  # tokens whose experts the scores contradict
    free: object  # (T,) bool: tokens that may route either way
    swapped: int  # free tokens that did route otherwise
    message: str = ""


def judge_selection(mine, run, config):
    """mine: (T, K) integers or None; run: a passage on the submission's own scores, but with the law's selection."""
    law = np.asarray(run.record.routing.topk_indices)
    reach = _reach(run)
    free = _free(run, reach, config)
    if mine is None:
        return Selected(None, [], free, 0)
    problem = _malformed(mine, law, config)
    if problem:
        return Selected(None, list(range(len(law))), free, 0, problem)
    differ = np.flatnonzero((np.sort(mine, axis=-1) != np.sort(law, axis=-1)).any(axis=-1))
    ranked = config.routing.selection == "topk" and not np.any(_free_groups(run.record.routing, config.routing))
    wrong = [int(t) for t in differ if not (_tied(mine[t], law[t], t, reach) if ranked else free[t])]
    message = f"token {wrong[0]}: {_said(mine[wrong[0]])} where the scores say {_said(law[wrong[0]])}" if wrong else ""
    return Selected(mine, wrong, free, len(differ) - len(wrong), message)


def _reach(run):
    """(T, E): how far another's choice scores may be, or None where nothing is ranked."""
    routing = run.record.routing
    ranked = next((a for a in (routing.choice_scores, routing.scores, routing.logits) if is_made(a)), None)
    if ranked is None:
        return None
    return ranked, ranked.part("bound")


def _free(run, reach, config):
    """Tokens whose choice hangs on scores that cannot be told apart, exact ties among them."""
    routing, rule = run.record.routing, config.routing
    none = np.zeros(len(routing.topk_indices), bool)
    if reach is None or routing.margin is None:
        return none
    score, bound = np.asarray(reach[0], np.float64), reach[1]
    if rule.selection == "threshold":
        return ((np.abs(score - rule.threshold) <= bound) & (bound > 0)).any(axis=-1)
    if rule.selection != "topk":
        return np.asarray(routing.margin) <= 2 * bound.max(axis=-1, initial=0.0)
    taken = np.zeros(score.shape, bool)
    np.put_along_axis(taken, np.asarray(routing.topk_indices), True, axis=-1)
    last = np.where(taken, score - bound, np.inf).min(axis=-1, initial=np.inf)
    return (last <= np.where(taken, -np.inf, score + bound).max(axis=-1, initial=-np.inf)) | _free_groups(routing, rule)


def _free_groups(routing, rule):
    """The same for the groups that are taken before the experts."""
    if not is_made(routing.group_scores) or rule.top_groups >= rule.num_groups:
        return False
    ordered = -np.sort(-np.asarray(routing.group_scores, np.float64), axis=-1)
    gap = ordered[:, rule.top_groups - 1] - ordered[:, rule.top_groups]
    return gap <= 2 * routing.group_scores.part("bound").max(axis=-1)


def _tied(mine, law, token, reach):
    """Do the experts that changed places have scores that cannot be told apart?"""
    if reach is None:
        return False
    score, bound = np.asarray(reach[0][token], np.float64), reach[1][token]
    out, into = sorted(set(law) - set(mine) - {-1}), sorted(set(mine) - set(law) - {-1})
    return bool(out and into and (score[out] - bound[out]).max() <= (score[into] + bound[into]).min())


def _malformed(mine, law, config):
    if mine.shape != law.shape:
        return f"expected shape {law.shape}, got {mine.shape}"
    if ((mine < -1) | (mine >= config.num_choices)).any():
        return f"expected ids from 0 to {config.num_choices - 1}, got {mine.min()} to {mine.max()}"
    ordered = np.sort(mine, axis=-1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return f"token {int(twice.any(axis=-1).argmax())} names an expert twice" if twice.any() else ""


def _said(experts):
    return ", ".join(str(int(e)) for e in experts)
