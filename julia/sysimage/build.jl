# Makes a system image, in which packages are loaded already: `pydeq julia install --sysimage`.
#
#     julia --project=BUILDER build.jl PROJECT IMAGE PACKAGE...
#
# BUILDER is an environment with PackageCompiler; PROJECT is the one that the image serves.

using PackageCompiler: create_sysimage

project, image, packages... = ARGS
create_sysimage(
    packages;
    project, sysimage_path = image, precompile_execution_file = joinpath(@__DIR__, "warm_up.jl"),
)
