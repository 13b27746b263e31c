"""One question about an image, answered by the built-in pair of models: `python examples/quickstart.py`.

Prints each step when it is committed, then the answer and the counters, and writes timeline.html:

    draft   orange triangle 7, green circle 5: 7 + 5 = 12
    draft   red star 1: 12 + 1 = 13
    ...
    answer: 33 (correct: 33)
    acceptance rate 100%, coverage 100%, 8.8 x as fast as the target alone

Needs neither a GPU nor a download. The factor depends on the machine.
"""

import dreamr
from dreamr.tasks.ledger import make_problem


def show(step: dreamr.CommittedStep) -> None:
    print(f"{step.source:7} {step.text.strip()}")


def main() -> None:
    problem = make_problem("test", seed=0, index=0)
    with dreamr.Reasoner() as reasoner:  # or dreamr.Reasoner("configs/qwen3-vl.yaml")
        result = reasoner.ask(problem.question, images=problem.image, on_step=show, compare=True)
    print(f"answer: {result.answer} (correct: {problem.answer})")
    print(
        f"acceptance rate {result.acceptance_rate or 0:.0%}, coverage {result.coverage:.0%}, "
        f"{result.speedup:.1f} x as fast as the target alone"
    )
    result.timeline("timeline.html")


if __name__ == "__main__":
    main()
