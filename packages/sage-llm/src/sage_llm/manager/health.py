"""Health of instances, judged by their reports and by the progress of their steps."""

from __future__ import annotations

from attrs import frozen

from sage_llm.manager.live_instance import InstanceWord, LiveInstance

__all__ = ["HealthLimits", "judge"]

_RARE = 0.99  # quantile of the gaps between reports
_GAP_FACTOR, _STEP_FACTOR = 8.0, 20.0


@frozen(kw_only=True)
class HealthLimits:
    """Times after which an instance is not healthy, in seconds.

    Attributes:
        suspect_s: without a report, it gets no new requests.
        lost_s: without a report, its requests move; at least 8 times the 99 % quantile of its gaps.
        stuck_s: without a step although requests run, it is suspect; at least 20 times its recent step. After twice
            that, its requests move.
        revive_s: a lost instance that is silent for longer is killed and restarted.
    """

    suspect_s: float = 0.75
    lost_s: float = 2.0
    stuck_s: float = 10.0
    revive_s: float = 10.0


def judge(instance: LiveInstance, now: float, limits: HealthLimits) -> tuple[InstanceWord, str] | None:
    """The next state of an instance with the reason; None if it does not change.

    ``now`` is on the clock of ``LiveInstance.heard_at``.
    """
    silent = now - instance.heard_at
    if instance.word == "dead" or instance.report is None:
        return None
    if instance.word == "lost":
        if silent > max(limits.revive_s, limits.lost_s):
            return "dead", f"no report for {silent:.1f} s"
        return (
            None if silent > limits.suspect_s or _still(instance, now) > 0 else ("probation", "reports again")
        )
    if silent > max(limits.lost_s, _GAP_FACTOR * _usual_gap(instance)):
        return "lost", f"no report for {silent:.1f} s"
    report = instance.report
    if report.state == "dead":
        return "dead", "its engine stopped"
    still = _still(instance, now)
    limit = max(limits.stuck_s, _STEP_FACTOR * (report.step_s or 0.0))
    if still > 2 * limit:
        return "dead", f"stuck: {report.running} sequences run, and no step ended for {still:.1f} s"
    if instance.word == "draining":
        return None
    if silent > limits.suspect_s:
        return None if instance.word == "suspect" else ("suspect", f"no report for {silent:.1f} s")
    if still > limit:
        return None if instance.word == "suspect" else ("suspect", f"no step for {still:.1f} s")
    return ("ready", "") if instance.word == "suspect" else None


def _still(instance: LiveInstance, now: float) -> float:
    """Seconds without a step although sequences run; 0 for an idle instance."""
    report = instance.report
    return now - instance.steps_at if report is not None and report.running > 0 and report.steps else 0.0


def _usual_gap(instance: LiveInstance) -> float:
    gaps = sorted(instance.gaps)
    return gaps[int(_RARE * (len(gaps) - 1))] if gaps else 0.0
