# `Pkg.test` has all of them; a project that `pydeq julia install` has set up has none.
if any(name -> isnothing(Base.identify_package(name)), ("Aqua", "ExplicitImports", "JET"))
    @info "The checks of quality are left out: this project has not Aqua, ExplicitImports and JET."
else
    include("quality_checks.jl")
end
