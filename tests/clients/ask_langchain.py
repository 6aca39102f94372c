"""LangChain's client against the server at argv[1]; what it saw, as JSON."""

import json
import sys

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

OPTIONS = {"model": "nightschool", "base_url": f"{sys.argv[1]}/v1", "api_key": "none", "temperature": 0}
model = ChatOpenAI(**OPTIONS, max_tokens=12)
said = [SystemMessage("Be brief."), HumanMessage("Say hello."), AIMessage(""), HumanMessage("Say it again.")]

saw = {"whole": model.invoke(said).content, "streamed": "".join(each.content for each in model.stream(said))}
saw["batch"] = [each.content for each in model.batch([said, said])]
saw["usage"] = model.invoke(said).usage_metadata["input_tokens"]
saw["text"] = OpenAI(**OPTIONS, max_tokens=12).invoke("Say hello.")
try:
    model.invoke("word " * 20_000)
except openai.BadRequestError as error:
    saw["long"] = [type(error).__name__, error.code]
cut = ChatOpenAI(**OPTIONS, max_tokens=12, extra_body={"truncation": "auto"})
saw["cut"] = cut.invoke([HumanMessage("word " * 3_000), AIMessage("yes"), HumanMessage("Say hello.")]).content
print(json.dumps(saw))
