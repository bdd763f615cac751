"""What Python gets of the samples, with so many threads at work."""
function predicted(session, s, x::Matrix{T}, n_threads) where {T}
    session.n_threads = n_threads
    n = size(x, 2)
    found = (zeros(T, width(s), n), zeros(T, s.n_outputs, n), zeros(T, n), zeros(Int, n), fill(false, n))
    PyDEQ.write_equilibrium!(session, x, found...)
    return found
end

@testset "threads give the same bits ($solver, $stability, horizon $horizon)" for
    (solver, stability, horizon) in [
        ("tsit5", "none", nothing), ("anderson", "contractive", nothing), ("broyden", "none", nothing),
        ("newton", "none", nothing), ("peaceman_rachford", "monotone", nothing),
        ("bs3", "none", nothing), ("tsit5", "none", 1.5),
    ]

    hidden_layer_sizes = stability == "monotone" ? Int[] : [7]
    loose = (abstol = 1.0e-4, reltol = 1.0e-4, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3)
    s = settings(; solver, stability, horizon, hidden_layer_sizes, loose...)
    session = open_with(s, random_arrays(s))
    x, _, _ = random_batch(s; n = 2PyDEQ.PART + 3)
    alone, by_threads = predicted(session, s, x, 1), predicted(session, s, x, 3)
    @test alone == by_threads
    whole = equilibrium(session, x; each = true)
    @test alone[1] ≈ whole.state rtol = 1.0e-9
    @test alone[2] ≈ whole.output rtol = 1.0e-9
    @test alone[5] == whole.converged && all(whole.converged)
end

"""Loss, gradient and a step's numbers of a batch, by so many threads."""
function trained(s, arrays, batch, n_threads)
    session = open_with(s, arrays)
    session.n_threads = n_threads
    loss, gradient = PyDEQ.loss_and_grad(session, batch..., probe_of(s))
    load_data!(session, batch...)
    reports = [train_batch!(session, 1:size(first(batch), 2), probe_of(s)) for _ in 1:2]
    return loss, gradient, reports, session.theta
end

@testset "a batch has the same bits by threads ($solver, $stability, $adjoint, $init)" for
    (solver, stability, adjoint, init) in [
        ("tsit5", "none", "implicit", "zero"), ("anderson", "contractive", "implicit", "cell"),
        ("peaceman_rachford", "monotone", "implicit", "cell"), ("newton", "jacobian", "jfb", "cell"),
        ("bs3", "none", "implicit", "cell"),
    ]

    hidden_layer_sizes = stability == "monotone" ? Int[] : [7]
    s = settings(; solver, stability, adjoint, init, hidden_layer_sizes, jacobian_penalty = 0.1)
    s = merge(s, (abstol = 1.0e-8, reltol = 1.0e-8, ode_abstol = 1.0e-8, ode_reltol = 1.0e-8))
    arrays, batch = random_arrays(s), random_batch(s; n = 300)
    @test trained(s, arrays, batch, 1) == trained(s, arrays, batch, 3)
    # Zygote's way, which has the whole batch at once.
    session = open_with(s, arrays)
    whole, back = PyDEQ.pass_by_zygote(session, batch..., probe_of(s), PyDEQ.Tape())
    loss, gradient = PyDEQ.loss_and_grad(session, batch..., probe_of(s))
    @test loss ≈ whole rtol = 1.0e-6
    @test off_by(gradient, back()) < 1.0e-5
end

@testset "layers have the same bits by threads" begin
    s = (; n_features = 16, n_state = 8, n_outputs = 2)
    session = PyDEQ.small_layers(
        Float64; stability = "contractive", solver = "anderson", abstol = 1.0e-9, reltol = 1.0e-9,
    )
    session.theta .= 0.5 .* randn(Xoshiro(0), length(session.theta))
    batch = (randn(Xoshiro(1), 16, 70), randn(Xoshiro(2), 2, 70), ones(70))
    x = repeat(first(batch), 1, 5)
    found = map((1, 3)) do n_threads
        (predicted(session, s, x, n_threads), PyDEQ.loss_and_grad(session, batch..., ones(8)))
    end
    @test first(found) == last(found)
    ((state, _, _, _, converged), (loss, gradient)) = first(found)
    @test all(converged) && state ≈ equilibrium(session, x).state
    whole, back = PyDEQ.pass_by_zygote(session, batch..., ones(8), PyDEQ.Tape())
    @test loss ≈ whole rtol = 1.0e-6
    @test off_by(gradient, back()) < 1.0e-5
end

@testset "an error of a thread is thrown where it was asked" begin
    s = settings()
    session = open_with(s, random_arrays(s))
    x = zeros(s.n_features + 1, 3PyDEQ.PART)
    error = @test_throws CapturedException predicted(session, s, x, 2)
    @test startswith(sprint(showerror, error.value), "DimensionMismatch")
    x, _, _ = random_batch(s; n = 3PyDEQ.PART)
    @test all(last(predicted(session, s, x, 2)))  # and the session goes on
end

@testset "BLAS gets its threads back" begin
    s = settings()
    session = open_with(s, random_arrays(s))
    x, _, _ = random_batch(s; n = 2PyDEQ.PART)
    n_before = BLAS.get_num_threads()
    BLAS.set_num_threads(2)
    predicted(session, s, x, 2)
    @test BLAS.get_num_threads() == 2
    BLAS.set_num_threads(n_before)
end
