# A layer whose cell or whose solver the package does not know: the general way.

function PyDEQ.through_sciml(layer::DeepEquilibrium, h, ps, st, found)
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
        sol = @ignore_derivatives solve(prob, algorithm(layer.solver); options...)
        z = @ignore_derivatives sol.u
        fz = f(z, p)
        z = fz .+ @ignore_derivatives(z .- fz)
    else
        sensealg = @ignore_derivatives SteadyStateAdjoint(; autojacvec = ZygoteVJP())
        sol = solve(prob, algorithm(layer.solver); p, sensealg, options...)
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
