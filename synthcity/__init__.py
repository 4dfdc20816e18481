"""A synthetic city in SF-XL layout: streets to train on, drive through and be lost in, from one seed.

Nothing is downloaded and no picture is stored in the package: facades are pure functions of place, lot and year, so
that the same house is seen from every street, in every year and weather.  The map of the folder, each file importing
only files above it:

    settings    every choice of a city in one record
    scene       the records a city is made of: walls, lots, objects, light, poses
    lots        the style of each building
    lattice     the streets of a district
    furniture   what stands in the streets
    lighting    weather, season and camera of a capture
    layout      blocks, lots and all else of a district
    poses       where the cameras stand: plan_city
    compiling   the one door to numba            (all files below need it; all above are plain numpy)
    noise       hashes and value noise
    materials, windows, shops, facades           the color of a building at a point of its wall
    ground, sky                                  the rest of the world
    shadows     shadow maps of a district
    view        one camera, its canvas and what lies in front of it
    walls       buildings, ground and sky, column by column
    cars, things                                 what stands in front of them
    render      poses in, pictures out
    capture     pictures to files: build_city

Pictures are plausible, not real: what a network learns here says nothing yet about photographs.
"""

from synthcity.capture import CitySummary, build_city
from synthcity.poses import CityPlan, Shots, plan_city
from synthcity.settings import CitySettings

__all__ = ["CityPlan", "CitySettings", "CitySummary", "Shots", "build_city", "plan_city"]
