#!/usr/bin/env python3
"""An agent that gets its API key from the vault, by the client of the package
`intentframe-credentials`:

    python3 examples/agent.py URL NAMESPACE KEY

It asks the vault right before it needs the key, and again if the key is refused: somebody may have
stored a new one. It never writes the key anywhere. INTENTFRAME_VAULT_SOCKET names another socket
than the default.
"""

import asyncio
import sys

import httpx
from intentframe_credentials.client import VaultClient


async def ask(url, namespace, key):
    async with VaultClient() as vault, httpx.AsyncClient(trust_env=False) as model:
        for _ in range(2):
            value = await vault.get(namespace, key)
            if value is None:
                sys.exit(f"agent: the vault has no {namespace}/{key}")
            answer = await model.get(url, headers={"Authorization": f"Bearer {value}"})
            if answer.status_code != 401:
                break
        answer.raise_for_status()
        return answer.text


if __name__ == "__main__":
    try:
        print(asyncio.run(ask(*sys.argv[1:])))
    except httpx.TransportError as error:
        sys.exit(f"agent: no answer: {error}")
