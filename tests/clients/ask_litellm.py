"""LiteLLM against the server at argv[1]; what it saw, as JSON."""

import json
import sys

import litellm

ASKED = {
    "model": "openai/nightschool",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "Say hello."}],
    "temperature": 0,
    "max_tokens": 12,
}


def refused(**change):
    try:
        litellm.completion(**ASKED | change)
    except Exception as error:
        return type(error).__name__


saw = {"whole": litellm.completion(**ASKED).choices[0].message.content}
saw["streamed"] = "".join(each.choices[0].delta.content or "" for each in litellm.completion(**ASKED, stream=True))
saw["text"] = (
    litellm.text_completion(
        **{name: value for name, value in ASKED.items() if name not in ("messages", "model")},
        model="text-completion-openai/nightschool",
        prompt="Say hello.",
    )
    .choices[0]
    .text
)
saw["long"] = refused(messages=[{"role": "user", "content": "word " * 5_000}])
saw["longest"] = refused(messages=[{"role": "user", "content": "word " * 50_000}])
saw["unknown"] = refused(model="openai/gpt-4")
saw["wrong"] = refused(n=99)
print(json.dumps(saw))
