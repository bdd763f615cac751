# The layer, its cells and solvers, by Lux's own means; the programs of README.md.

using Lux: Chain, Dense
using SciMLBase: SteadyStateProblem, solve, successful_retcode

"""A layer that the package does not know, with the same parameters and values."""
struct Unknown{L} <: Lux.AbstractLuxWrapperLayer{:layer}
    layer::L
end
(unknown::Unknown)(x, ps, st) = unknown.layer(x, ps, st)

dense_chain() = Chain(Dense(6 => 9, tanh), Dense(9 => 6))
double_of(ps) = Lux.f64(ps)

const LAYERS = [
    ("contractive, anderson", contractive(dense_chain()), Batched(:anderson)),
    ("contractive, broyden", contractive(dense_chain()), Batched(:broyden)),
    ("contractive, newton", contractive(dense_chain()), Batched(:newton)),
    ("contractive, tsit5", contractive(dense_chain()), Batched(:tsit5)),
    ("contractive, DynamicSS", contractive(dense_chain()), DynamicSS(Tsit5())),
    ("unknown, anderson", contractive(Unknown(dense_chain())), Batched(:anderson)),
    ("unknown, DynamicSS", contractive(Unknown(dense_chain())), DynamicSS(Tsit5())),
    ("unknown, tsit5", contractive(Unknown(dense_chain())), Batched(:tsit5)),
    ("monotone, splitting", MonotoneCell(6, tanh), Batched(:peaceman_rachford)),
    ("monotone, DynamicSS", MonotoneCell(6, tanh), DynamicSS(Tsit5())),
]

@testset "the layer's value is an equilibrium, its gradient the quotient's ($name)" for
    (name, cell, solver) in LAYERS

    tight = (abstol = 1.0e-11, reltol = 1.0e-11, maxiters = 20_000)
    options = solver isa DynamicSS ? (;
            odesolve_kwargs = (; abstol = 1.0e-12, reltol = 1.0e-12, maxiters = 20_000, save_everystep = false),
        ) : (;)
    layer = DeepEquilibrium(cell, solver; tight..., options...)
    ps, st = double_of(Lux.setup(Xoshiro(0), layer))
    h = randn(Xoshiro(1), 6, 5)
    z, after = layer(h, ps, st)
    @test off_by(PyDEQ.inject(cell, z, h, ps.cell, st.cell), z) < 1.0e-10
    @test all(after.solution.converged)
    @test all(after.solution.residual .< 1.0e-9)
    @test size(after.solution.residual) == size(after.solution.n_evals) == (5,)
    @test all(after.solution.n_evals .> 1)
    goal = randn(Xoshiro(2), 6, 5)
    loss(ps, h) = sum(abs2, first(layer(h, ps, st)) .- goal)
    for_ps, for_h = Zygote.gradient(loss, ps, h)
    flat, rebuild = Lux.Optimisers.destructure(ps)
    gradient = first(Lux.Optimisers.destructure(for_ps))
    direction = randn!(Xoshiro(3), similar(flat))
    direction ./= norm(direction)
    quotient = difference_quotient(d -> loss(rebuild(flat .+ only(d)), h), [zero(flat)], [direction])
    @test abs(quotient - dot(direction, gradient)) < 1.0e-6 * norm(gradient)
    direction = randn!(Xoshiro(4), similar(h))
    quotient = difference_quotient(d -> loss(ps, only(d)), [h], [direction ./ norm(direction)])
    @test abs(quotient - dot(direction ./ norm(direction), for_h)) < 1.0e-6 * norm(for_h)
end

@testset "what is known by its layers gives what it gives as any layer ($adjoint)" for
    adjoint in (:implicit, :jfb)

    known, unknown = contractive(dense_chain()), contractive(Unknown(dense_chain()))
    layers = [DeepEquilibrium(cell; abstol = 1.0e-10, reltol = 1.0e-10, adjoint) for cell in (known, unknown)]
    ps, st = double_of(Lux.setup(Xoshiro(0), first(layers)))
    h = randn(Xoshiro(1), 6, 5)
    outputs = [first(layer(h, ps, st)) for layer in layers]
    @test outputs[1] ≈ outputs[2] rtol = 1.0e-8
    gradients = [
        Zygote.gradient((ps, h) -> sum(abs2, first(layer(h, ps, st))), ps, h) for layer in layers
    ]
    flat = [first(Lux.Optimisers.destructure(g)) for g in gradients]
    @test flat[1] ≈ flat[2] rtol = 1.0e-6
    @test PyDEQ.fast_network(layers[1]) !== nothing && PyDEQ.fast_network(layers[2]) === nothing
end

@testset "a contractive layer is what it was where that is small enough" begin
    cell = contractive(dense_chain(); bound = 0.7)
    ps, st = double_of(Lux.setup(Xoshiro(0), cell))
    acting = PyDEQ.contract(ps, 0.7)
    @test opnorm(acting.layer_1.weight) * opnorm(acting.layer_2.weight) <= 0.7 * (1 + 1.0e-12)
    @test acting.layer_1.bias == ps.layer_1.bias
    @test PyDEQ.contract(acting, 0.7).layer_1.weight ≈ acting.layer_1.weight rtol = 0.1
end

@testset "a batched solver takes any problem ($name)" for name in (:anderson, :broyden, :fixed_point, :tsit5)
    f(u, p, t) = cos.(p .* u) .- u
    prob = SteadyStateProblem(f, [0.0 1.0 4.0], 1.0)
    sol = solve(prob, Batched(name); abstol = 1.0e-10, reltol = 0.0)
    @test successful_retcode(sol)
    @test maximum(abs, sol.u .- 0.7390851332151607) < 1.0e-9
    @test_throws "MonotoneCell" solve(prob, Batched(:peaceman_rachford))
end

@testset "what a layer has not is said" begin
    @test_throws "found \"midpoint\"" Batched(:midpoint)
    @test_throws "MonotoneCell takes" MonotoneCell(3, sin)
    layer = DeepEquilibrium(Unknown(dense_chain()); adjoint = :unrolled)
    ps, st = Lux.setup(Xoshiro(0), layer)
    @test_throws "adjoint = :unrolled needs" layer(ones(Float32, 6, 2), ps, st)
end
