"""Large transfers take turns, and slow ones keep nobody waiting."""

import asyncio

from paceline.network.transfer_limits import LARGE, Lanes


def test_so_many_at_a_time():
    async def go():
        lanes, at_once, most = Lanes(3, hold=10), 0, 0

        async def transfer():
            nonlocal at_once, most
            turn = await lanes.turn(LARGE)
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.01)
            turn.going_on()
            at_once -= 1
            turn.end()
            turn.end()

        await asyncio.gather(*(transfer() for _ in range(10)))
        return most

    assert asyncio.run(go()) == 3


def test_small_ones_do_not_wait():
    async def go():
        lanes = Lanes(1)
        await lanes.turn(LARGE)
        async with asyncio.timeout(1):
            for _ in range(5):
                await lanes.turn(LARGE - 1)

    asyncio.run(go())


def test_a_slow_one_goes_on_without_its_lane():
    async def go():
        lanes = Lanes(1, hold=0.05)
        slow = await lanes.turn(LARGE)

        async def trickle():
            for _ in range(40):
                await asyncio.sleep(0.01)
                slow.going_on()

        trickling = asyncio.ensure_future(trickle())
        next_one = await lanes.turn(LARGE)
        before_its_end = not trickling.done()
        next_one.end()
        await trickling
        slow.end()
        assert await asyncio.wait_for(lanes.turn(LARGE), 1)
        return before_its_end

    assert asyncio.run(go())
