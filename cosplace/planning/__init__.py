"""What a number of photos needs: disk, memory, machines, hours, cost.  Nothing is run, except by `measuring`.

quantities  numbers that know the formula they come from
constants   measured speeds and sizes, with their sources (constants.toml)
workload    what is asked for: photos, model, machines, prices; the inputs of the plan
plan        all figures of a plan, by formula
measuring   the speeds of this machine
"""
