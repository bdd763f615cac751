# The steady state by SciML's own solver: SteadyStateDiffEq's `DynamicSS` on OrdinaryDiffEq's Tsit5.
# A batch is one ODE, whose samples share their steps. It works on a device's arrays; on the CPU
# `search` is faster, because each sample has its own steps, and is tested against this.

"""
    Field(cell, n)

The right-hand side f(u, h) - u for n samples, as SciML's solvers call it: `u` and `p` are flat
vectors, `p` holds the cell's parameters and then `h`, so that gradients reach both. (A captured h
would get no gradient: that is why the encoder of the original program never trains.)

It counts its evaluations.
"""
struct Field
    cell::Network
    shapes::Vector{Dims}
    n_evals::Base.RefValue{Int}
end

function Field(cell::Network, n::Int)
    width = first(cell.shapes)[2]
    return Field(cell, [(cell.n_parameters,), (width, n)], Ref(0))
end

function (field::Field)(u::AbstractVector, p::AbstractVector, _)
    @ignore_derivatives field.n_evals[] += 1
    flat, h = cut(p, field.shapes)
    fu = field.cell(flat, reshape(u, size(h)), h)
    du = (vec(fu) .- u)::typeof(u)  # SciML's solvers need the type, which the layers hide
    return du
end

"""The field as an out-of-place ODE function, compiled for its own type."""
ode_function(field::Field) = ODEFunction{false, SciMLBase.FullSpecialize}(field)

"""
    follow(solver, cell, flat, h) -> Outcome

Follow du/dt = f(u, h) - u from u(0) = f(0, h) until every sample is steady by [`is_steady`](@ref)
(`DynamicSS`'s own rule has one maximum over the batch, so that samples with small states could end
too early beside large ones).
"""
function follow(solver::Solver, cell::Network, flat, h::AbstractMatrix{T}) where {T}
    n = size(h, 2)
    field = Field(cell, n)
    u = cell(flat, zero(h), h)
    at(u) = reshape(u, size(h))
    is_done(u, _, integrator) = all(is_steady(at(u), at(u) .+ at(get_du(integrator)), solver))
    callback = DiscreteCallback(is_done, terminate!; save_positions = (false, false))
    sol = solve(
        SteadyStateProblem(ode_function(field), vec(u), glue([flat, h])), DynamicSS(Tsit5());
        abstol = zero(T), reltol = zero(T),  # the callback ends it
        odesolve_kwargs = (;
            abstol = T(solver.ode_abstol), reltol = T(solver.ode_reltol),
            maxiters = solver.max_steps, save_everystep = false, verbose = None(), callback,
        ),
    )
    u = at(sol.u)
    fu = cell(flat, u, h)
    return Outcome(u, fu, fill(field.n_evals[] + 2, n), is_steady(u, fu, solver))
end
