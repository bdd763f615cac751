# `Pkg.test` has it; a project that `pydeq julia install` has set up has not.
if isnothing(Base.identify_package("JLArrays"))
    @info "Sessions on a GPU's arrays are left out: this project has not JLArrays."
else
    include("device_checks.jl")
end
