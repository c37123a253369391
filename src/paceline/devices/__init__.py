"""Device profiles, fleets of them, and virtual time."""

from paceline.devices.clock import Cost, Phase, Times, VirtualClock, times
from paceline.devices.fleet import FLEETS, Fleet, Homogeneous, Mobile, Stragglers, load_fleet
from paceline.devices.participation import PROCESSES, Participation, load_participation
from paceline.devices.profile import COMPUTE, LATENCY, LINK, Profile

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
    "Phase",
    "Profile",
    "Stragglers",
    "Times",
    "VirtualClock",
    "load_fleet",
    "load_participation",
    "times",
]
