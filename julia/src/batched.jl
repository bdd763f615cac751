# The package's own solvers by name, and the search over any field.

"""
    Batched(name)

Solve a `SteadyStateProblem` for a batch: the columns of its state are samples, each of which stops
by itself, so that no answer depends on its batch. `name` is `:anderson`, `:broyden`,
`:fixed_point`, `:newton`, `:peaceman_rachford` or `:tsit5`; of these `:newton` is for cells of
`Dense` layers with one activation, and `:peaceman_rachford` for a [`MonotoneCell`](@ref).

The right-hand side is out of place, and each column of its value a function of that column of the
state. The solution's `original` has the evaluations of each sample, and which converged. (SciML's
problems are known once SciMLBase is loaded.)

# Example

```julia
using PyDEQ, SciMLBase
f(u, p, t) = cos.(u) .- u
sol = solve(SteadyStateProblem(f, [0.0 1.0]), Batched(:anderson); abstol = 1.0e-10, reltol = 0.0)
sol.u ≈ [0.7390851332151607 0.7390851332151607]
```
"""
struct Batched
    name::Symbol
    function Batched(name::Symbol)
        check_choice("solver", name, OWN_SOLVERS)
        return new(name)
    end
end
