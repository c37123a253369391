"""Device profiles, fleets of devices, and virtual time."""

from paceline.devices.changing import Changing, Traced, write_trace
from paceline.devices.clock import Cost, TimedPhase, Times, VirtualClock, times, work_time
from paceline.devices.fleet import Fleet, Homogeneous, Mobile, Stragglers, load_fleet
from paceline.devices.profile import COMPUTE, LATENCY, LINK, Profile
from paceline.participation.processes import Participation, load_participation

__all__ = [
    "COMPUTE",
    "LATENCY",
    "LINK",
    "Changing",
    "Cost",
    "Fleet",
    "Homogeneous",
    "Mobile",
    "Participation",
    "Profile",
    "Stragglers",
    "TimedPhase",
    "Times",
    "Traced",
    "VirtualClock",
    "load_fleet",
    "load_participation",
    "times",
    "work_time",
    "write_trace",
]
