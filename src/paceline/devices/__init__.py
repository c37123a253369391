"""Device profiles, fleets of devices, and virtual time."""

from paceline.devices.clock import Cost, TimedPhase, Times, VirtualClock, times
from paceline.devices.fleet import FLEETS, Fleet, Homogeneous, Mobile, Stragglers, load_fleet
from paceline.devices.profile import COMPUTE, LATENCY, LINK, Profile
from paceline.participation.processes import PROCESSES, Participation, load_participation

__all__ = [
    "COMPUTE",
    "FLEETS",
    "LATENCY",
    "LINK",
    "PROCESSES",
    "Cost",
    "Fleet",
    "Homogeneous",
    "Mobile",
    "Participation",
    "Profile",
    "Stragglers",
    "TimedPhase",
    "Times",
    "VirtualClock",
    "load_fleet",
    "load_participation",
    "times",
]
