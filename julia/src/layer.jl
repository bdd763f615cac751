# The layer: an equilibrium as a link of a chain of Lux layers.

"""
    DeepEquilibrium(cell, solver = Batched(:anderson); init = nothing, abstol = 1.0e-3,
        reltol = 1.0e-3, maxiters = 1000, adjoint = :implicit, kwargs...)

A Lux layer whose value at the samples `h` (width, n) is the steady state of du/dt = f(u, h) - u,
with f(u, h) the `cell` at u + h: any Lux layer of as many outputs as inputs, [`contractive`](@ref)
ones included, or a [`MonotoneCell`](@ref).

# Arguments

  - `solver`: what solves a `SteadyStateProblem`: SciML's `DynamicSS(Tsit5())`, `SSRootfind()`, ...,
    or a [`Batched`](@ref) one, in which each sample stops by itself.
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
    z = network === nothing ? through_sciml(layer, h, ps.cell, st.cell, found) :
        steady_states(search_settings(layer), network, flat_parameters(layer.cell, ps.cell), h, found)
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

"""The general way, for every Lux layer and every algorithm of SciML's."""
function through_sciml(layer::DeepEquilibrium, h, ps, st, found)
    f(u, p) = inject(layer.cell, u, p.h, p.ps, st)
    field(u, p, t) = (fu = f(u, p); reshape(vec(fu) .- vec(u), size(u)))
    layer.adjoint === :unrolled && throw(
        ArgumentError(
            "adjoint = :unrolled needs a Batched solver, and a cell of Dense layers; found " *
                "$(nameof(typeof(layer.solver))) and $(nameof(typeof(layer.cell))).",
        ),
    )
    p = (; ps, h)
    u0 = @ignore_derivatives layer.init === nothing ? f(zero(h), p) : layer.init(h)
    prob = @ignore_derivatives SteadyStateProblem(field, u0, p)
    options = @ignore_derivatives merge(solve_options(layer, layer.solver, eltype(h)), layer.options)
    if layer.adjoint === :jfb
        sol = @ignore_derivatives solve(prob, layer.solver; options...)
        z = @ignore_derivatives sol.u
        fz = f(z, p)
        z = fz .+ @ignore_derivatives(z .- fz)
    else
        sensealg = @ignore_derivatives SteadyStateAdjoint(; autojacvec = ZygoteVJP())
        sol = solve(prob, layer.solver; p, sensealg, options...)
        z = sol.u
    end
    @ignore_derivatives found[] = outcome_of(sol, f(z, p), layer)
    return z
end

function solve_options(layer::DeepEquilibrium, ::DynamicSS, ::Type{T}) where {T}
    (; abstol, reltol, maxiters) = layer
    ode_abstol, ode_reltol = ode_tolerances(abstol, reltol)
    odesolve_kwargs = (;
        abstol = T(ode_abstol), reltol = T(ode_reltol), maxiters, save_everystep = false,
        verbose = None(),
    )
    return (; abstol = T(abstol), reltol = T(reltol), odesolve_kwargs)
end

function solve_options(layer::DeepEquilibrium, _, ::Type{T}) where {T}
    return (; abstol = T(layer.abstol), reltol = T(layer.reltol), layer.maxiters)
end

"""What a solver found; where it does not say it for each sample, all have the batch's count."""
function outcome_of(sol, fz, layer::DeepEquilibrium)
    sol.original isa Outcome && return sol.original
    n_evals = fill(sol.stats === nothing ? 0 : Int(sol.stats.nf), size(fz, 2))
    return Outcome(sol.u, fz, n_evals, is_steady(sol.u, fz, layer))
end

# --- dense cells by a batched solver: in place, and one compilation for every width ---

"""The cell as a [`Network`](@ref), if it is one and the solver works on it; or nothing."""
function fast_network(layer::DeepEquilibrium)
    is_plain = layer.solver isa Batched && layer.init === nothing && isempty(layer.options)
    return is_plain ? dense_network(layer.cell) : nothing
end

dense_network(_) = nothing

function dense_network(chain::Lux.Chain)
    layers = values(chain.layers)
    all(layer -> layer isa Dense && LuxCore.parameterlength(layer) > layer.in_dims * layer.out_dims, layers) ||
        return nothing
    names = map(layer -> activation_name(layer.activation), layers)
    hidden = unique(names[1:(end - 1)])
    is_known = last(names) === :identity && length(hidden) <= 1 && !(nothing in hidden)
    is_known || return nothing
    widths = [first(layers).in_dims; map(layer -> layer.out_dims, collect(layers))]
    return Network(Vector{Int}(widths), isempty(hidden) ? :identity : only(hidden))
end

function activation_name(σ)
    σ in (tanh, Lux.tanh_fast) && return :tanh
    σ in (Lux.sigmoid, Lux.sigmoid_fast) && return :logistic
    σ === Lux.relu && return :relu
    return σ === identity ? :identity : nothing
end

"""The parameters of a dense cell as they act, as a [`Network`](@ref) keeps them."""
flat_parameters(::Lux.Chain, ps) =
    reduce(vcat, [vcat(vec(layer.weight), vec(layer.bias)) for layer in values(ps)])
