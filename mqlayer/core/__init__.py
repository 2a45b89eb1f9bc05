"""What the blocking and the asyncio API share: everything but the waiting. Calls return futures; flows yield them."""
