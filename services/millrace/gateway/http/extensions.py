"""What the connection tells the app beyond ASGI, under these keys of the scope's `extensions`."""

from __future__ import annotations

# A function that ends the connection without a word.
CUT = "millrace.cut"
# An HTTPException to answer with, whatever else the scope says.
REFUSAL = "millrace.refusal"
# An asyncio.Event that is set once the client has ended its side of the connection.
CLIENT_END = "millrace.client_end"
