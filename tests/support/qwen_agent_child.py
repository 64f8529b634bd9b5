"""Run as a program: asks Qwen-Agent's assistant with the MCP server of the time, prints its messages as JSON.

Arguments: the question, then a server's base URL and settings for generation as JSON, again for each time it is asked.
Importing Qwen-Agent takes seconds, so one process asks for all tests.
"""

import json
import sys

from qwen_agent.agents import Assistant
from qwen_agent.tools.mcp_manager import MCPManager

question, *asked = sys.argv[1:]
clock = {"command": sys.executable, "args": ["-m", "mcp_server_time", "--local-timezone=Asia/Shanghai"]}
for url, settings in zip(asked[::2], asked[1::2], strict=True):
    model = {"model": "demo", "model_server": url, "api_key": "EMPTY", "generate_cfg": json.loads(settings)}
    assistant = Assistant(llm=model, function_list=[{"mcpServers": {"time": clock}}])
    messages = list(assistant.run(messages=[{"role": "user", "content": question}]))[-1]
    print("MESSAGES", json.dumps(messages))
MCPManager().shutdown()
