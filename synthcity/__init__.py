"""A synthetic city in SF-XL layout, for demos and tests: images that are consistent in 3D, from one seed.

Nothing is downloaded and no image is stored in the package.  Facades are pure functions of position, lot and year, so a
building looks the same from every street, in every year and weather.  Each file imports only files above it:

    settings    all settings of a city
    scene       the records of a city: walls, lots, objects, light, poses
    lots        the style of each building
    lattice     the streets of a district
    furniture   objects in the streets
    lighting    weather, season and camera of a capture
    layout      blocks, lots and objects of a district
    poses       camera poses: plan_city
    compiling   decorators of numba; files below need numba, files above do not
    noise       hashes and value noise
    materials   wall surfaces
    windows     windows and balconies
    shops       ground floors
    facades     color of a building at a point of its wall
    ground      color of the ground
    sky         color of the sky
    shadows     shadow maps of a district
    view        one camera and its canvas
    walls       draws buildings, ground and sky, column by column
    cars        draws cars
    things      draws trees, people, lamps, signs
    render      from poses to images
    capture     from images to files: build_city

A model trained on the synthetic city says nothing about real photos.
"""

from synthcity.capture import CitySummary, build_city
from synthcity.poses import CityPlan, Shots, plan_city
from synthcity.settings import CitySettings

__all__ = ["CityPlan", "CitySettings", "CitySummary", "Shots", "build_city", "plan_city"]
