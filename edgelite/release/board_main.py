# main.py of a board: copy it beside the folders `edgelite` and `node`, and register your functions where it says so.
from edgelite.callables import Functions
from edgelite.firmware import Firmware


def blink(task):
    """A pod whose image is `callable:blink` runs this. What it yields are the seconds until its next step."""
    while not task.stopping:
        task.print("blink", *task.args)
        yield float(task.env.get("SECONDS", "1"))


# To have the agent replace itself (updates.json of the package, and a folder `update`), before the imports above:
#     import edgelite
#     from edgelite.boardslots import SlotStore, pick
#     from edgelite.updatestore import UpdateFiles
#     pick(SlotStore(UpdateFiles(), "update"), edgelite.__version__)
# and below: Firmware("node", functions, updates=BoardUpdates(["04.."], machine.reset)).run(), of edgelite.boardupdates.


def main():
    functions = Functions()
    functions.register("blink", blink)  # yours too
    # Before this the network is up. With a watchdog: feed=machine.WDT(timeout=30000).feed. Where nothing has set the clock:
    # times=[("NTP", unix_seconds_of_ntptime)], set_wall=set_the_rtc.
    Firmware("node", functions).run()


if __name__ == "__main__":
    main()
