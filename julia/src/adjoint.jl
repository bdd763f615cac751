# The state as a differentiable function of the cell's flat parameters and of h.

"""
The adjoint is solved to so many times the forward tolerance, but never more loosely than the second
number: a gradient that is 1 % off is nothing beside what a batch's is off from that of all the data.
"""
const ADJOINT_SHARE, LOOSEST_ADJOINT = 10, 1.0e-2

"""
    states(model, solver, flat, h, u0, found) -> (width, n)

Return the states that the loss is a function of, differentiable in `flat`, the cell's parameters
as they act, in `h` (width, n) and, where they go through the steps, in `u0` (width, n). The
[`Outcome`](@ref) is put into `found`.
"""
function states(model, solver::Solver, flat, h, u0, found::Base.RefValue{Outcome})
    model.horizon === nothing || return integrate(model, solver, flat, h, u0, found)
    return steady_states(solver, model.cell, flat, h, u0, found)
end

"""
    integrate(model, solver, flat, h, u0, found) -> (width, n)

Return u(T) from u(0) = `u0` (width, n) with `h` (width, n), T being the model's horizon; the
[`Outcome`](@ref) is put into `found`. A method of the extension for DiffEqFlux.

`converged` says that the integration reached T within `max_steps` and is finite. Where it did not,
the states that `found` holds are those that count; the returned ones need not be alike.
"""
function integrate end

"""`u0` may be nothing, f(0, h), but for `unrolled`."""
function steady_states(solver::Solver, cell::AbstractNetwork, flat, h, u0, found::Base.RefValue{Outcome})
    solver.adjoint === :implicit && return implicit(solver, cell, flat, h, u0, found)
    solver.adjoint === :unrolled && return unroll(solver, cell, flat, h, u0, found)
    @ignore_derivatives found[] = search(solver, cell, flat, h, u0)
    return jfb(cell, flat, h, @ignore_derivatives found[].u)
end

"""
By the implicit function theorem: with ``\\lambda = (I - \\partial f/\\partial z)^{-T} dL/dz`` at z*
the gradients are ``\\lambda^T \\partial f/\\partial\\theta`` and ``\\lambda^T \\partial f/\\partial h``
(Bai et al. 2019, theorem 1).

SciMLSensitivity's `SteadyStateAdjoint`, which `DeepEquilibrium` has for cells and solvers that it does
not know, gives the same. Its linear solver has one Krylov space for the whole batch,
and its products evaluate the cell once more each.
"""
function implicit(solver::Solver, cell::AbstractNetwork, flat, h, u0, found::Base.RefValue{Outcome})
    found[] = search(solver, cell, flat, h, u0)
    return found[].u
end

function ChainRulesCore.rrule(
        config::RuleConfig{>:HasReverseMode}, ::typeof(implicit), solver::Solver, cell::AbstractNetwork, flat, h,
        u0, found,
    )
    z = implicit(solver, cell, flat, h, u0, found)
    function implicit_pullback(cotangent)
        lambda = adjoint_state(solver, cell, flat, h, z, unthunk(cotangent))
        _, back = rrule_via_ad(config, cell, flat, z, h)
        _, to_flat, _, to_h = back(lambda)
        return NoTangent(), NoTangent(), NoTangent(), to_flat, to_h, NoTangent(), NoTangent()
    end
    return z, implicit_pullback
end

"""
    adjoint_state(solver, cell, flat, h, z, g) -> (width, n)

Solve ``(I - \\partial f/\\partial z)^T \\lambda = g`` at the states `z`.
"""
function adjoint_state(solver::Solver, network::AbstractNetwork, flat, h, z, g::AbstractMatrix{T}) where {T}
    if !is_on_host(flat)
        pool = pool_like(flat)
        return solve_adjoint(solver, linearize(Cell(network, flat, h, pool), z, h, pool), g, pool)
    end
    here = Matrix{T}(h)
    jacobian = linearize(on_host(network, Vector{T}(flat), here), Matrix{T}(z), here)
    return copyto!(similar(g), solve_adjoint(solver, jacobian, Matrix{T}(g)))
end

"""
    pull_state(solver, network, flat, h, z, g) -> (to_flat, to_h)

Return the gradients in the cell's parameters as they act and in `h` of a loss whose gradient in the
states `z` is `g`, on the CPU, by the solver's adjoint, `implicit` or `jfb`.
"""
function pull_state(solver::Solver, network::AbstractNetwork, flat::AbstractVector{T}, h, z, g) where {T}
    h, row = Matrix{T}(h), Matrix{T}(g)
    cell = on_host(network, Vector{T}(flat), h)
    solver.adjoint === :jfb || (row = solve_adjoint(solver, linearize(cell, z, h), row))
    to_flat = zeros(T, length(flat))
    _, to_h = pull_at!(to_flat, cell, h, z, row, nothing)
    return to_flat, to_h
end

"""The adjoint of the `jacobian`, which is void afterwards."""
function solve_adjoint(solver::Solver, jacobian::AbstractJacobian, g::AbstractMatrix, pool = nothing)
    rtol = min(ADJOINT_SHARE * max(solver.abstol, solver.reltol), LOOSEST_ADJOINT)
    n_products = zeros(Int, size(g, 2))
    return solve_linear!(borrow_like(pool, g), n_products, jacobian, g, rtol, true, pool)
end

"""The value is z*, the gradient that of one application of the cell to it (Fung et al. 2022)."""
function jfb(cell::AbstractNetwork, flat, h, z)
    fz = cell(flat, (@ignore_derivatives z), h)
    return fz .+ @ignore_derivatives(z .- fz)
end

"""The numbers as a row (1, n), of the kind and type of the matrix `a`."""
function row_like(a::AbstractMatrix{T}, numbers) where {T}
    return copyto!(similar(a, 1, length(numbers)), T.(numbers))
end
