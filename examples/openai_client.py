"""Asks an endpoint by the official client: `python examples/openai_client.py`, with `make serve` in another terminal.

Any OpenAI client works; the reasoning arrives step by step in `reasoning`, the answer in `content`. Prints

    orange triangle 7, green circle 5: 7 + 5 = 12
    ...
    answer: Answer: 33 (correct: 33)
    speculation: {'acceptance_rate': 1.0, ...}

The endpoint: DREAMR_URL, default http://127.0.0.1:8000/v1. Its key, if it needs one: OPENAI_API_KEY.
"""

import base64
import os

import openai

from dreamr.tasks.ledger import make_problem


def main() -> None:
    problem = make_problem("test", seed=0, index=0)
    image = "data:image/png;base64," + base64.b64encode(problem.prompt.images[0]).decode()
    url = os.environ.get("DREAMR_URL", "http://127.0.0.1:8000/v1")
    client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": image}},
                    {"type": "text", "text": problem.question},
                ],
            }
        ],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"method": "fpsr", "window": 4},  # dreamr's own fields, none of which is needed
    )
    answer, usage = "", None
    for chunk in stream:
        for choice in chunk.choices:
            print(getattr(choice.delta, "reasoning", None) or "", end="", flush=True)
            answer += choice.delta.content or ""
        usage = chunk.usage or usage
    print(f"\nanswer: {answer.strip()} (correct: {problem.answer})")
    print(f"speculation: {getattr(usage, 'speculation', None)}")


if __name__ == "__main__":
    main()
