"""Train for some steps on batches of 8, as Python does."""
function train!(session, s; n_steps = 6, n = 20, first_step = 1)
    load_data!(session, random_batch(s, eltype(session.theta); n)...)
    rng = Xoshiro(9)
    batches = [rand(rng, 1:n, 8) for _ in 1:n_steps]
    return [train_batch!(session, batch, probe_of(s)) for batch in batches[first_step:end]]
end

@testset "Adam takes the textbook's steps" begin
    s = settings()
    arrays = random_arrays(s)
    session = open_with(s, arrays)
    reports = train!(session, s)
    m, v = zero.(arrays), zero.(arrays)
    rng = Xoshiro(9)
    data = random_batch(s; n = 20)
    for k in 1:6
        batch = rand(rng, 1:20, 8)
        x, target, weight = (selectdim(a, ndims(a), batch) for a in data)
        loss, g = loss_and_grad(open_with(s, arrays), x, target, weight, probe_of(s))
        @test reports[k].loss ≈ loss rtol = 1.0e-8
        @test reports[k].grad_norm ≈ norm(norm.(g)) rtol = 1.0e-8
        @test reports[k].weight ≈ sum(weight)
        @test reports[k].n_samples == 8 && reports[k].n_failed == 0
        @test reports[k].n_evals > 16
        m, v = 0.9 .* m .+ 0.1 .* g, 0.999 .* v .+ 0.001 .* [a .^ 2 for a in g]
        arrays = map(arrays, m, v) do a, mi, vi
            a .- 0.02 .* (mi ./ (1 - 0.9^k)) ./ (sqrt.(vi ./ (1 - 0.999^k)) .+ 1.0e-8)
        end
    end
    @test all(off_by.(get_arrays(session), arrays) .< 1.0e-8)
    count, m_found, _ = optimizer_state(session)
    @test count == 6
    @test all(off_by.(m_found, m) .< 1.0e-7)
end

@testset "Adam in one pass has the bits of Optimisers' ($T)" for T in (Float32, Float64)
    rng = Xoshiro(6)
    theta = randn(rng, T, 1001)
    rule = PyDEQ.Adam(0.02, (0.9, 0.999), 1.0e-8)
    leaf, tree, expected = PyDEQ.Optimisers.setup(rule, theta), PyDEQ.Optimisers.setup(rule, theta), copy(theta)
    for _ in 1:5
        gradient = randn(rng, T, 1001)
        PyDEQ.adam!(leaf, theta, gradient)
        tree, expected = PyDEQ.Optimisers.update!(tree, expected, gradient)
        @test theta == expected && leaf.state == tree.state
    end
end

@testset "batches work in the same arrays ($stability)" for stability in ("contractive", "monotone")
    s = settings(;
        n_features = 200, n_state = 40, stability, solver = "anderson", abstol = 1.0e-4,
        hidden_layer_sizes = stability == "monotone" ? Int[] : [60],
    )
    session = open_with(s, random_arrays(s))
    large, small = random_batch(s; n = 50), random_batch(s; n = 7)
    first_answers = [loss_and_grad(session, batch..., probe_of(s)) for batch in (large, small)]
    @test first_answers == [loss_and_grad(session, batch..., probe_of(s)) for batch in (large, small)]
    load_data!(session, large...)
    step() = @allocated train_batch!(session, 1:50, probe_of(s))
    step()
    # The pullback of a monotone weight has some of its size.
    @test step() < (stability == "monotone" ? 3 : 1) * sizeof(session.theta)
end

@testset "a session goes on where another ended ($T)" for T in (Float64, Float32)
    s = settings(; abstol = 1.0e-4, reltol = 1.0e-4, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3)
    arrays = random_arrays(s, T)
    straight = open_with(s, arrays)
    train!(straight, s)
    first_part = open_with(s, arrays)
    train!(first_part, s; n_steps = 4)
    count, m, v = optimizer_state(first_part)
    second = open_with(s, get_arrays(first_part); opt_count = count, opt_m = m, opt_v = v)
    train!(second, s; first_step = 5)
    @test get_arrays(second) == get_arrays(straight)
    @test optimizer_state(second) == optimizer_state(straight)
end

@testset "a snapshot brings a session back" begin
    s = settings()
    session = open_with(s, random_arrays(s))
    train!(session, s; n_steps = 2)
    before = (get_arrays(session), optimizer_state(session))
    saved = snapshot(session)
    train!(session, s; n_steps = 2)
    @test get_arrays(session) != first(before)
    restore!(session, saved)
    @test (get_arrays(session), optimizer_state(session)) == before
    @test_throws BoundsError train_batch!(session, [1, 21], probe_of(s))
    @test (get_arrays(session), optimizer_state(session)) == before
end

@testset "arrays are copied in and out" begin
    s = settings()
    arrays = random_arrays(s)
    kept = deepcopy(arrays)
    session = open_with(s, arrays)
    foreach(a -> fill!(a, 7), arrays)
    @test get_arrays(session) == kept
    out = Any[zero(array) for array in arrays]
    PyDEQ.write_params!(session, out)
    @test out == kept
    foreach(a -> fill!(a, 8), out)
    @test get_arrays(session) == kept
end

@testset "a frozen encoder stays" begin
    s = settings(; train_encoder = false)
    arrays = random_arrays(s)
    session = open_with(s, arrays)
    train!(session, s; n_steps = 2)
    same = get_arrays(session) .== arrays
    @test same == [true, true, false, false, false, false, false, false][1:length(same)]
end

@testset "samples of weight zero have no influence" begin
    s = settings()
    arrays = random_arrays(s)
    x, target, weight = random_batch(s)
    weight[1:2:end] .= 0
    loss, g = loss_and_grad(open_with(s, arrays), x, target, weight, probe_of(s))
    x[:, 1:2:end] .= 1.0e300
    target[:, 1:2:end] .= -1.0e300
    other, other_g = loss_and_grad(open_with(s, arrays), x, target, weight, probe_of(s))
    @test loss == other && g == other_g
end

@testset "failed samples are counted and left out ($adjoint, $solver, $horizon)" for
    (adjoint, solver, horizon) in [
        ("implicit", "tsit5", nothing), ("jfb", "fixed_point", nothing),
        ("unrolled", "fixed_point", nothing), ("implicit", "tsit5", 8.0),
    ]

    # Above 0 the state grows until it is lost or not finite.
    s = settings(;
        TWO_SLOPES..., solver, adjoint, horizon, alpha = 0.0, learning_rate = 0.01,
        abstol = 1.0e-10, reltol = 1.0e-10, ode_abstol = 1.0e-10, ode_reltol = 1.0e-10,
        max_steps = horizon === nothing ? 1000 : 300,
    )
    x = [1.0 -1.0 2.0 -2.0 -0.5 3.0 -3.0 -0.2]
    below = vec(x .< 0)
    horizon === nothing || (x[:, .!below] .*= 1.0e300)
    weight = collect(range(1.0, 2.0, 8))
    session = open_with(s, two_slopes(4.0, 0.5))
    load_data!(session, x, -x, weight)
    report = train_batch!(session, 1:8, ones(1))
    other = open_with(s, two_slopes(4.0, 0.5))
    load_data!(other, x, -x, weight .* below)
    expected = train_batch!(other, 1:8, ones(1))
    @test report.n_failed == count(!, below) && expected.n_failed == 0
    @test report.n_samples == 8 && expected.n_samples == 5
    @test !(report.worst_residual <= 1.0e-3)
    @test report.loss ≈ expected.loss rtol = 1.0e-6
    @test report.grad_norm ≈ expected.grad_norm rtol = 1.0e-6
    @test all(isapprox.(get_arrays(session), get_arrays(other); rtol = 1.0e-6))
end

@testset "a batch with no sample left changes nothing" begin
    s = settings(; TWO_SLOPES..., max_steps = 200)
    arrays = two_slopes(1.5, 0.5)
    session = open_with(s, arrays)
    load_data!(session, [1.0 2.0 3.0], ones(1, 3), ones(3))
    report = train_batch!(session, 1:3, ones(1))
    @test report.n_failed == 3 && report.weight == 0 && report.grad_norm == 0
    @test get_arrays(session) == arrays
    @test first(optimizer_state(session)) == 0
end

@testset "what cannot be is said" begin
    s = settings()
    arrays = random_arrays(s)
    names, _ = layout(s)
    said(changes) = try
        open_with(s, arrays; changes...)
        ""
    catch error
        sprint(showerror, error)
    end
    @test occursin("rock4, tsit5 and vcab3; found \"euler\"", said((; solver = "euler")))
    @test occursin("needs stability=\"monotone\"", said((; solver = "peaceman_rachford")))
    @test occursin("adjoint=\"unrolled\" for", said((; solver = "newton", adjoint = "unrolled")))
    @test occursin("encoder.weight", said((; n_state = nothing, n_outputs = 3)))
    @test occursin("found 2 and 3", said((; n_state = nothing)))
    @test occursin("found (6, 3)", said((; n_features = 4)))
    @test occursin("found cell.0.bias, cell.0.weight", said((; names = sort(names))))
    has_cuda() || @test occursin("no usable CUDA", said((; device = "cuda")))
    @test_throws "load_data!" train_batch!(open_with(s, arrays), [1], probe_of(s))
end

@testset "the post's y = 2x" begin
    s = settings(;
        n_features = 1, n_outputs = 1, n_state = nothing, hidden_layer_sizes = [5],
        activation = "identity", abstol = 1.0e-2, reltol = 1.0e-2, ode_abstol = 1.0e-6,
        ode_reltol = 1.0e-3, max_steps = 1000, loss = "squared_error", learning_rate = 0.05,
        alpha = 0.0,
    )
    session = open_with(s, random_arrays(s, Float32; scale = 1.0, seed = 4))
    x = reshape(Float32.(1:10), 1, :)
    load_data!(session, x, 2x, ones(Float32, 10))
    reports = [train_batch!(session, 1:10, [1.0f0]) for _ in 1:1000]
    @test last(reports).loss < 0.05
    @test abs(only(equilibrium(session, [-5.0f0;;]).output) + 10) < 0.2
end
