"""What existing Python callers do, with httpx: one kept connection, a connection per call,
and many calls at once. Usage: python_client.py SOCKET BACKEND"""

import asyncio
import re
import sys

import httpx

BASE_URL = "http://credential-vault"
WIRE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
SUMMARY_FIELDS = [
    "namespace", "key", "delivery_mode", "masked_preview", "created_at", "updated_at",
    "last_validated_at", "last_used_at", "valid",
]


def client(socket, **options):
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=socket, **options), base_url=BASE_URL, timeout=20
    )


def answer(response, status=200):
    assert response.status_code == status, (response.request, response.status_code, response.text)
    return response.json()


def whole_cycle(http):
    """Every endpoint, over the connection that the client keeps."""
    health = answer(http.get("/health"))
    assert health["status"] == "ok", health
    assert health["backend"] == sys.argv[2], health
    assert health["credential_count"] == 0, health
    assert answer(http.get("/v1/credentials")) == []

    value = 'sk-proj-é-🔑-"\\\n-XYZ'
    path = "/v1/credentials/email.you@gmail.com/pass word"
    same = "/v1/credentials/email.you%40gmail.com/pass%20word"
    answer(http.get(path), 404)
    assert http.head(path).status_code == 404
    body = {
        "value": value,
        "delivery_mode": "runtime_env",
        "allowed_consumers": ["uwe", "jarvis"],
        "env_name": "EMAIL_PASSWORD",
        "validator_id": None,
        "a_later_version": {"says": ["more"]},
    }
    assert answer(http.put(path, json=body)) == {"status": "stored"}
    assert answer(http.get(same)) == {"value": value}
    assert http.head(same).status_code == 200

    [summary] = answer(http.get("/v1/credentials/email.you%40gmail.com"))
    assert list(summary) == SUMMARY_FIELDS, summary
    assert summary["key"] == "pass word", summary
    assert summary["masked_preview"] == "sk-pro....YZ", summary
    for field in ("created_at", "updated_at", "last_used_at"):
        assert WIRE_TIME.fullmatch(summary[field]), summary
    assert answer(http.get("/v1/runtime-env")) == [{
        "namespace": "email.you@gmail.com",
        "key": "pass word",
        "env_name": "EMAIL_PASSWORD",
        "allowed_consumers": ["uwe", "jarvis"],
    }]

    detail = answer(http.put(path, json={"value": 1, "env_name": value}), 422)["detail"]
    assert detail[0]["loc"] == ["body", "value"], detail
    assert value not in str(detail), detail
    assert answer(http.get(same)) == {"value": value}

    moved = http.get("/v1/credentials/", follow_redirects=True)
    assert [hop.status_code for hop in moved.history] == [307], moved.history
    assert len(answer(moved)) == 1

    # Body and head in one stream of unknown length would be chunked; a list of bytes is
    # what httpx sends as such, and this service refuses it: say so rather than hang.
    chunked = http.put(path, content=iter([b"{}"]), headers={"Content-Type": "application/json"})
    answer(chunked, 400)

    assert answer(http.delete(same)) == {"status": "deleted"}
    assert answer(http.delete(same)) == {"status": "deleted"}
    answer(http.get(path), 404)
    assert answer(http.get("/v1/credentials")) == []


def kept_alive(http):
    """One connection carries them all."""
    answer(http.get("/health"))
    for _ in range(200):
        stream = http.get("/health").extensions["network_stream"]
        first = stream.get_extra_info("socket")
        assert http.get("/health").extensions["network_stream"].get_extra_info("socket") is first


def a_connection_per_call(socket):
    for n in range(20):
        with client(socket) as http:
            answer(http.put("/v1/credentials/fresh/key", json={"value": str(n)}))
        assert answer(httpx_get(socket, "/v1/credentials/fresh/key")) == {"value": str(n)}
    answer(client(socket).delete("/v1/credentials/fresh/key"))


def httpx_get(socket, path):
    with client(socket, limits=httpx.Limits(max_keepalive_connections=0)) as http:
        return http.get(path)


async def many_at_once(socket):
    transport = httpx.AsyncHTTPTransport(uds=socket)
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, timeout=20) as http:
        paths = [f"/v1/credentials/many/key-{n:03}" for n in range(200)]
        stored = await asyncio.gather(
            *(http.put(path, json={"value": path}) for path in paths)
        )
        assert all(answer(response) == {"status": "stored"} for response in stored)
        read = await asyncio.gather(*(http.get(path) for path in paths))
        assert [answer(response)["value"] for response in read] == paths
        listed = answer(await http.get("/v1/credentials/many"))
        assert [summary["key"] for summary in listed] == [path[-7:] for path in paths]
        await asyncio.gather(*(http.delete(path) for path in paths))
        assert answer(await http.get("/v1/credentials/many")) == []


def main():
    socket = sys.argv[1]
    with client(socket) as http:
        whole_cycle(http)
        kept_alive(http)
    a_connection_per_call(socket)
    asyncio.run(many_at_once(socket))


main()
