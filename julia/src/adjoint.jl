# The state as a differentiable function of the cell's flat parameters and of h.

"""
The adjoint is solved to so many times the forward tolerance, but never more loosely than the second
number: a gradient that is 1 % off is nothing beside what a batch's is off from that of all the data.
"""
const ADJOINT_SHARE, LOOSEST_ADJOINT = 10, 1.0e-2

"""
    states(model, solver, flat, h, found) -> (width, n)

Return the states that the loss is a function of, differentiable in `flat`, the cell's parameters
as they act, and in `h` (width, n). The [`Outcome`](@ref) is put into `found`.
"""
function states(model, solver::Solver, flat, h, found::Base.RefValue{Outcome})
    model.horizon === nothing || return integrate(model, solver, flat, h, model.horizon, found)
    return steady_states(solver, model.cell, flat, h, found)
end

function steady_states(solver::Solver, cell::AbstractNetwork, flat, h, found::Base.RefValue{Outcome})
    solver.adjoint === :implicit && return implicit(solver, cell, flat, h, found)
    solver.adjoint === :unrolled && return unroll(solver, cell, flat, h, found)
    @ignore_derivatives found[] = search(solver, cell, flat, h)
    return jfb(cell, flat, h, @ignore_derivatives found[].u)
end

"""
By the implicit function theorem: with ``\\lambda = (I - \\partial f/\\partial z)^{-T} dL/dz`` at z*
the gradients are ``\\lambda^T \\partial f/\\partial\\theta`` and ``\\lambda^T \\partial f/\\partial h``
(Bai et al. 2019, theorem 1).

SciMLSensitivity's `SteadyStateAdjoint`, which `DeepEquilibrium` has for what is not a dense cell by a
[`Batched`](@ref) solver, gives the same. Its linear solver has one Krylov space for the whole batch,
and its products evaluate the cell once more each.
"""
function implicit(solver::Solver, cell::AbstractNetwork, flat, h, found::Base.RefValue{Outcome})
    found[] = search(solver, cell, flat, h)
    return found[].u
end

function ChainRulesCore.rrule(::typeof(implicit), solver::Solver, cell::AbstractNetwork, flat, h, found)
    z = implicit(solver, cell, flat, h, found)
    function implicit_pullback(cotangent)
        lambda = adjoint_state(solver, cell, flat, h, z, unthunk(cotangent))
        _, back = Zygote.pullback((flat, h) -> cell(flat, z, h), flat, h)
        return NoTangent(), NoTangent(), NoTangent(), back(lambda)..., NoTangent()
    end
    return z, implicit_pullback
end

"""
    adjoint_state(solver, cell, flat, h, z, g) -> (width, n)

Solve ``(I - \\partial f/\\partial z)^T \\lambda = g`` at the states `z`, on the host.
"""
function adjoint_state(solver::Solver, network::AbstractNetwork, flat, h, z, g::AbstractMatrix{T}) where {T}
    here = Matrix{T}(h)
    jacobian = linearize(on_host(network, Vector{T}(flat), here), Matrix{T}(z), here)
    return copyto!(similar(g), solve_adjoint(solver, jacobian, Matrix{T}(g)))
end

"""The same on the CPU; the `jacobian` is void afterwards."""
function solve_adjoint(solver::Solver, jacobian::AbstractJacobian, g::Matrix, pool = nothing)
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
