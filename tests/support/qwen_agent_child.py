"""Run as a program: asks Qwen-Agent's assistant with the MCP server of the time, prints its messages as JSON.

Arguments: the server's base URL, the question, and settings for generation as JSON.
"""

import json
import sys

from qwen_agent.agents import Assistant
from qwen_agent.tools.mcp_manager import MCPManager

url, question, settings = sys.argv[1:]
clock = {"command": sys.executable, "args": ["-m", "mcp_server_time", "--local-timezone=Asia/Shanghai"]}
model = {"model": "demo", "model_server": url, "api_key": "EMPTY", "generate_cfg": json.loads(settings)}
assistant = Assistant(llm=model, function_list=[{"mcpServers": {"time": clock}}])
messages = list(assistant.run(messages=[{"role": "user", "content": question}]))[-1]
print("MESSAGES", json.dumps(messages))
MCPManager().shutdown()
