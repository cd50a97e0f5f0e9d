"""Back-pressure for accepted connections, from their first byte on."""


def hold_reading(stream: object) -> None:
    """Let *stream*, just accepted by one of anyio's listeners, read no further than somebody asks.

    asyncio's transports read by themselves. anyio pauses them whenever a ``receive()`` had to wait, but leaves an
    accepted one (unlike a connected one) running until then, which is never with a client that always has sent more
    than was taken: an upload to a slow target would come into memory as a whole. To be called before anything else is
    awaited; ``receive()`` goes on as usual. On trio, which has no transports, this does nothing.
    """
    transport = getattr(stream, "_transport", None)
    pause = getattr(transport, "pause_reading", None)
    if pause is not None:
        pause()
