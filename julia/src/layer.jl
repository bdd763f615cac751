# The layer: an equilibrium as a link of a chain of Lux layers.

"""
    DeepEquilibrium(cell, solver = Batched(:anderson); init = nothing, abstol = 1.0e-3,
        reltol = 1.0e-3, maxiters = 1000, adjoint = :implicit, kwargs...)

A Lux layer whose value at the samples `h` (width, n) is the steady state of du/dt = f(u, h) - u,
with f(u, h) the `cell` at u + h: any Lux layer of as many outputs as inputs, [`contractive`](@ref)
ones included, or a [`MonotoneCell`](@ref).

# Arguments

  - `solver`: what solves a `SteadyStateProblem`: SciML's `DynamicSS(Tsit5())`, `SSRootfind()`, ...,
    or a [`Batched`](@ref) one, in which each sample stops by itself. Unless it is `Batched` and the
    cell a `Chain` of `Dense` layers, SteadyStateDiffEq and SciMLSensitivity have to be loaded.
  - `init`: u(0) as a function of h; `nothing` is f(0, h).
  - `abstol`, `reltol`: the search ends where ``||f - u||_\\infty`` is at most the one, or at most the
    other times ``||f||_\\infty``; `maxiters`: bound on its steps.
  - `adjoint`: `:implicit`, by the implicit function theorem (SciMLSensitivity's
    `SteadyStateAdjoint`); `:jfb`, one application of the cell (Fung et al. 2022); `:unrolled`,
    through the steps. The last needs a dense cell and a `Batched` solver.
  - `kwargs`: more keywords for `solve`.

Its state has the cell's, and `solution`: `residual` (n,), ``||f - z||_\\infty / ||f||_\\infty``,
`n_evals` (n,) and `converged` (n,).

# Example

```julia
using Lux, PyDEQ, Random
model = Chain(Dense(3 => 8), DeepEquilibrium(Chain(Dense(8 => 16, tanh), Dense(16 => 8))), Dense(8 => 2))
ps, st = Lux.setup(Xoshiro(0), model)
y, st = model(randn(Xoshiro(1), Float32, 3, 5), ps, st)
all(st.layer_2.solution.converged)
```
"""
struct DeepEquilibrium{C, S, I, O} <: AbstractLuxContainerLayer{(:cell,)}
    cell::C
    solver::S
    init::I
    abstol::Float64
    reltol::Float64
    maxiters::Int
    adjoint::Symbol
    options::O
end

function DeepEquilibrium(
        cell, solver = Batched(:anderson); init = nothing, abstol = 1.0e-3, reltol = 1.0e-3,
        maxiters = 1000, adjoint = :implicit, kwargs...,
    )
    check_choice("adjoint", adjoint, ADJOINTS)
    return DeepEquilibrium(
        cell, solver, init, Float64(abstol), Float64(reltol), Int(maxiters), adjoint, values(kwargs)
    )
end

function LuxCore.initialstates(rng::AbstractRNG, layer::DeepEquilibrium)
    none = (residual = Float32[], n_evals = Int[], converged = Bool[])
    return (cell = LuxCore.initialstates(rng, layer.cell), solution = none)
end

function (layer::DeepEquilibrium)(h::AbstractMatrix, ps, st)
    found = Ref{Outcome}()
    network = @ignore_derivatives fast_network(layer)
    network === nothing && @ignore_derivatives check_loaded(
        through_sciml, "a cell that is not of Dense layers, or a solver that is not Batched",
        FOR_STEADY_STATES,
    )
    if network === nothing
        z = through_sciml(layer, h, ps.cell, st.cell, found)
    else
        u0 = @ignore_derivatives layer.init === nothing ? nothing : layer.init(h)
        flat = flat_parameters(layer.cell, ps.cell)
        z = steady_states(search_settings(layer), network, flat, h, u0, found)
    end
    solution = @ignore_derivatives (
        residual = residual(found[]), n_evals = found[].n_evals, converged = found[].converged,
    )
    return z, (; st.cell, solution)
end

"""f(u, h) of the states `u` and the inputs `h`."""
inject(cell, u, h, ps, st) = first(cell(u .+ h, ps, st))

"""The search and its tolerances; the ODE's steps are OrdinaryDiffEq's, none looser than the search."""
function search_settings(layer::DeepEquilibrium)
    (; abstol, reltol, maxiters, adjoint) = layer
    return Solver(layer.solver.name, abstol, reltol, maxiters, adjoint)
end

"""
    through_sciml(layer, h, ps, st, found)

The general way, for every Lux layer and every algorithm of SciML's: a method of an extension.
"""
function through_sciml end

"""What SciML's `solve` takes for a layer's solver."""
algorithm(solver) = solver

# --- dense cells by a batched solver: in place, and one compilation for every width ---

"""The cell as a [`Network`](@ref), if it is one and the solver works on it; or nothing."""
function fast_network(layer::DeepEquilibrium)
    is_plain = layer.solver isa Batched && isempty(layer.options)
    return is_plain ? dense_network(layer.cell) : nothing
end

dense_network(_) = nothing

function activation_name(σ)
    σ in (tanh, tanh_fast) && return :tanh
    σ in (sigmoid, sigmoid_fast) && return :logistic
    σ === relu && return :relu
    return σ === identity ? :identity : nothing
end

"""
    flat_parameters(cell, ps)

Return the parameters of a dense cell as they act, as a [`Network`](@ref) keeps them.
"""
function flat_parameters end
