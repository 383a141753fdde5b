"""OpenAI's own client at `hilora serve`; at `hilora gateway` and at vLLM with the plugin it is the same.

make serve                                     # in another terminal
python examples/openai_client.py               # prints docs/serving-transcript.md; see docs/vllm-transcript.md
"""

import os
from typing import Any

from openai import OpenAI, OpenAIError

URL = os.environ.get("HILORA_URL", "http://127.0.0.1:8000/v1")
CLIENT = """client = OpenAI(base_url={url!r}, api_key=os.environ.get("HILORA_TOKEN", "none"))"""
CALLS = (
    "[each.id for each in client.models.list()][:5]",
    """answer = client.chat.completions.create(
    model="auto",
    messages=[{"role": "user", "content": "What is 46 plus 27?"}],
    max_tokens=8,
    temperature=0,
    extra_body={"hilora": {"explain": True}},
)""",
    "answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.completion_tokens",
    "[(each['name'], round(each['weight'], 3), each['rocs']) for each in answer.hilora['adapters']]",
    """stream = client.completions.create(
    model="sst2", prompt="A joy to see. Positive or negative? Answer:", max_tokens=4, temperature=0, stream=True
)""",
    "''.join(chunk.choices[0].text for chunk in stream)",
    """route = client.post("/route", cast_to=object, body={"input": "Translate to German: Good morning, all."})""",
    "[(each['name'], round(each['weight'], 3), each['seen']) for each in route['hilora']['adapters']]",
    """client.chat.completions.create(model="no-such-adapter", messages=[{"role": "user", "content": "Hello?"}])""",
)


def main(url: str = URL) -> None:
    """Show each call as Python's prompt would."""
    known: dict[str, Any] = {"OpenAI": OpenAI, "os": os}
    for call in (CLIENT.format(url=url), *CALLS):
        print(">>> " + call.replace("\n", "\n... "))
        try:
            print(repr(eval(call, known)))
        except SyntaxError:  # it gives a name to something
            exec(call, known)
        except OpenAIError as error:
            print(f"{type(error).__name__}: {error}")
    known["client"].close()


if __name__ == "__main__":
    main()
