"""Asks a server one ledger question: `python tests/cluster/ask.py http://127.0.0.1:8000/v1`."""

from __future__ import annotations

import base64
import io
import sys

import openai

from dreamr.tasks.ledger import extract_answer, make_problem


def main(base_url: str) -> None:
    """Exits with an error unless the answer has the form that the task asks for."""
    problem, picture = make_problem("test", 0, 0), io.BytesIO()
    problem.image.save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    client = openai.OpenAI(base_url=base_url, api_key="none")
    done = client.chat.completions.create(
        model=next(iter(client.models.list())).id,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": problem.question},
                ],
            }
        ],
    )
    answer = done.choices[0].message.content or ""
    print(f"{problem.question}\n{answer.strip()} (right is {problem.answer})")
    if extract_answer(answer) is None:
        sys.exit("the reply has no answer line")


if __name__ == "__main__":
    main(sys.argv[1])
