"""A schedule of your own: one function, one entry in `pipelines.SCHEDULES`: `python examples/own_schedule.py`.

`cautious` drafts as `sequential` does, but leaves the next two steps to the target after a rejection. Prints one line
per schedule, with the draft from before its training, some of whose steps are rejected:

    sequential  correct, 5 of 6 steps from the draft, acceptance rate 83%
    cautious    correct, 3 of 6 steps from the draft, acceptance rate 75%

To add it for good, put the function into a file in pipelines/ and the entry into pipelines/__init__.py. Every method of
`Session`: pipelines/session.py.
"""

import dreamr
from dreamr.tasks.answers import is_correct
from dreamr.tasks.ledger import make_problem
from pipelines import SCHEDULES, Schedule
from pipelines.session import Session

PAUSE = 2


async def cautious(session: Session) -> None:
    """Draft a step and judge it; after a rejection, pause drafting for `PAUSE` steps."""
    pause = 0
    while not session.ended:
        if pause or not session.can_speculate:
            pause = max(0, pause - 1)
            await session.commit_target(session.target_step())
            continue
        drafted = session.draft_and_judge(session.next_index, session.frontier)
        verdict = await session.verdict(drafted)
        if not (verdict and session.commit_if_accepted(drafted.draft, verdict, drafted.calls)):
            pause = PAUSE
            await session.commit_target(session.target_step(), drafted, verdict)


SCHEDULES["cautious"] = Schedule(cautious, compares=False)


def main() -> None:
    problem = make_problem("test", seed=0, index=0)
    with dreamr.Reasoner(draft="embedded:draft-untrained") as reasoner:
        for method in ("sequential", "cautious"):
            result = reasoner.ask(problem.question, images=problem.image, method=method)
            verdict = "correct" if is_correct("ledger", str(problem.answer), result.trace.text) else "wrong"
            drafted = sum(step.source == "draft" for step in result.steps)
            print(
                f"{method:11} {verdict}, {drafted} of {len(result.steps)} steps from the draft, "
                f"acceptance rate {result.acceptance_rate or 0:.0%}"
            )


if __name__ == "__main__":
    main()
