# `Pkg.test` has both; a project that `pydeq julia install` has set up has neither.
if any(name -> isnothing(Base.identify_package(name)), ("Aqua", "ExplicitImports"))
    @info "The checks of quality are left out: this project has not Aqua and ExplicitImports."
else
    include("quality_checks.jl")
end
