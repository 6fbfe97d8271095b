"""Generates text at the server at argv[2] with the client named by argv[1] and prints what the client parsed, as JSON.

The clients are unmodified.
"""

import json
import os
import sys

BASE = sys.argv[2]
MODEL = "stub"
MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def openai():
    from openai import APIStatusError, OpenAI

    client = OpenAI(base_url=f"{BASE}/v1", api_key="key", max_retries=0)
    usage, text = None, ""
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, stream_options=options):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    tool = [{"role": "user", "content": "!tool"}]
    called = client.chat.completions.create(model=MODEL, messages=tool, tools=TOOLS).choices[0]
    try:
        list(client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "!fail"}], stream=True))
        broken = None
    except Exception as error:
        broken = type(error).__name__
    try:
        client.chat.completions.create(model="nowhere", messages=MESSAGES)
        unknown = None
    except APIStatusError as error:
        unknown = [type(error).__name__, error.code]
    deltas = [event for event in client.responses.create(model=MODEL, input="hello", stream=True)]
    response = client.responses.create(model=MODEL, input="hello")
    numbers = [event.sequence_number for event in deltas]
    rest = list(client.responses.retrieve(deltas[0].response.id, stream=True, starting_after=4))
    prompt = client.completions.create(model=MODEL, prompt="hello", stream=True)
    return {
        "stream": text,
        "usage": [usage.prompt_tokens, usage.completion_tokens],
        "whole": [whole.choices[0].message.content, whole.choices[0].finish_reason],
        "tool": [called.finish_reason, called.message.tool_calls[0].function.name],
        "broken": broken,
        "unknown": unknown,
        "responses": "".join(event.delta for event in deltas if event.type == "response.output_text.delta"),
        "response": [response.output_text, response.status],
        "resumed": numbers[5:] == [event.sequence_number for event in rest],
        "completions": "".join(chunk.choices[0].text for chunk in prompt),
        "models": [model.id for model in client.models.list() if model.id == MODEL],
    }


def anthropic():
    from anthropic import Anthropic, APIStatusError

    client = Anthropic(base_url=BASE, api_key="key", max_retries=0)
    with client.messages.stream(model=MODEL, max_tokens=64, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    whole = client.messages.create(model=MODEL, max_tokens=2, messages=MESSAGES)
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    tool = [{"role": "user", "content": "!tool"}]
    called = client.messages.create(model=MODEL, max_tokens=64, messages=tool, tools=tools)
    try:
        with client.messages.stream(model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "!fail"}]) as stream:
            stream.get_final_message()
        broken = None
    except APIStatusError as error:
        broken = type(error).__name__
    return {
        "stream": text,
        "usage": [last.usage.input_tokens, last.usage.output_tokens],
        "whole": [whole.content[0].text, whole.stop_reason],
        "tool": [called.stop_reason, called.content[0].name, called.content[0].input],
        "broken": broken is not None,
        "count": client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens,
    }


def google():
    from google import genai

    client = genai.Client(api_key="key", http_options={"base_url": BASE})
    chunks = list(client.models.generate_content_stream(model=MODEL, contents="hello"))
    whole = client.models.generate_content(model=MODEL, contents="hello", config={"max_output_tokens": 2})
    try:
        client.models.generate_content(model="nowhere", contents="hello")
        unknown = None
    except genai.errors.APIError as error:
        unknown = error.code
    return {
        "stream": "".join(chunk.text or "" for chunk in chunks),
        "usage": [chunks[-1].usage_metadata.prompt_token_count, chunks[-1].usage_metadata.candidates_token_count],
        "whole": [whole.text, whole.candidates[0].finish_reason.name],
        "unknown": unknown,
        "count": client.models.count_tokens(model=MODEL, contents="hello").total_tokens,
    }


def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm as lite

    lite.telemetry = False
    texts = {}
    for provider, base in [("openai", f"{BASE}/v1"), ("anthropic", BASE), ("gemini", BASE)]:
        request = {"model": f"{provider}/{MODEL}", "messages": MESSAGES, "api_base": base, "api_key": "key", "max_tokens": 64}
        chunks = lite.completion(stream=True, **request)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        texts[provider] = [text, lite.completion(**request).choices[0].message.content]
    return texts


def langchain():
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=MODEL, base_url=f"{BASE}/v1", api_key="key", max_retries=0)
    return {"stream": "".join(chunk.content for chunk in chat.stream("hello")), "whole": chat.invoke("hello").content}


def huggingface():
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=f"{BASE}/v1", api_key="key")
    chunks = client.chat_completion(MESSAGES, model=MODEL, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return {"stream": text, "whole": client.chat_completion(MESSAGES, model=MODEL).choices[0].message.content}


print(json.dumps({name: call for name, call in globals().items() if callable(call)}[sys.argv[1]]()))
