# The solver `tsit5`: follow du/dt = f(u, h) - u until it stands still, by SteadyStateDiffEq's
# `DynamicSS` on OrdinaryDiffEq's Tsit5. A batch is one ODE: its samples share the steps.

"""
A sample whose speed ||f(u) - u|| exceeds this many times the size of its start has lost its
equilibrium. It is held where it is, because the others, which share its steps, would hardly get
anywhere beside an exponential growth.
"""
const LOST = 1.0e6

"""
    Flow(field, buffers, frozen)

The same right-hand side as the [`Field`](@ref)'s in place, for an integration that is not
differentiated. It holds still the samples in `frozen`.
"""
struct Flow{M <: AbstractMatrix}
    field::Field
    v::M  # u + h
    buffers::Buffers{M}
    frozen::Vector{Int}
end

Flow(field::Field, u::AbstractMatrix) = Flow(field, similar(u), Buffers(field.cell, u), Int[])

function (flow::Flow)(du::AbstractVector, u::AbstractVector, p::AbstractVector, _)
    (; field, v, buffers, frozen) = flow
    field.n_evals[] += 1
    flat, h = cut(p, field.shapes)
    v .= reshape(u, size(v)) .+ h
    du .= vec(evaluate!(buffers, field.cell, flat, v)) .- u
    isempty(frozen) || (view(reshape(du, size(v)), :, frozen) .= 0)
    return nothing
end

"""
    Watch(solver, flow, limits)

What looks at the ODE after every step: it ends the integration when every sample is steady by
[`is_steady`](@ref) (`DynamicSS`'s own rule has one maximum over the batch, so that samples with
small states could end too early beside large ones), and freezes the samples that are lost.
"""
struct Watch{F <: Flow}
    solver::Solver
    flow::F
    limits::Vector{Float64}
    lost::Vector{Int}
end

function (watch::Watch)(u, _, integrator)
    shape = size(watch.flow.v)
    u, du = reshape(u, shape), reshape(get_du(integrator), shape)
    gap = column_norms(du)
    append!(empty!(watch.lost), findall(.!(gap .<= watch.limits)))
    return !isempty(watch.lost) || all(is_steady(u, u .+ du, watch.solver))
end

"""What is done when the watch calls."""
function act!(watch::Watch, integrator)
    isempty(watch.lost) && return terminate!(integrator)
    append!(watch.flow.frozen, watch.lost)
    # du has jumped: the slope that is kept from the last step is not that of the next.
    return derivative_discontinuity!(integrator, true)
end

function follow(solver::Solver, cell::Network, p::AbstractVector, u::AbstractMatrix{T}, fu) where {T}
    n = size(u, 2)
    field = Field(cell, n)
    flow = Flow(field, u)
    watch = Watch(solver, flow, LOST .* (column_norms(u) .+ column_norms(fu)), Int[])
    callback = DiscreteCallback(
        watch, integrator -> act!(watch, integrator); save_positions = (false, false)
    )
    # Near a steady state the steps grow until they are as wrong as they may be, and du is never
    # much smaller than that: a tighter search takes more accurate steps.
    tolerance = max(solver.abstol, solver.reltol)
    sol = solve(
        SteadyStateProblem(ODEFunction{true, SciMLBase.FullSpecialize}(flow), vec(u), p),
        DynamicSS(Tsit5());
        abstol = zero(T), reltol = zero(T),  # the watch ends it
        odesolve_kwargs = (;
            abstol = T(min(solver.ode_abstol, tolerance)),
            reltol = T(min(solver.ode_reltol, tolerance)),
            maxiters = solver.max_steps, save_everystep = false, verbose = None(), callback,
        ),
    )
    # It ends by the watch or by max_steps. If the step size broke down instead, some samples may
    # have spoilt it for the others.
    if !(sol.original.retcode in (ReturnCode.Terminated, ReturnCode.MaxIters)) && n > 1
        return search_each(solver, cell, p, n)
    end
    n_evals = field.n_evals[] + 2  # u(0) and its f
    return outcome_at(solver, cell, p, reshape(sol.u, size(u)), n_evals, last(sol.original.t))
end
