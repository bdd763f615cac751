function check_gradient(s, scale; depth = 0)
    # The kinks of relu are to lie outside the step.
    step, tolerance = s.activation == "relu" ? (1.0e-5, 1.0e-5) : (1.0e-3, 1.0e-6)
    arrays = random_arrays(s; scale)
    x, target, weight = random_batch(s)
    probe = probe_of(s)
    loss(arrays) = first(loss_and_grad(open_with(s, arrays), x, target, weight, probe, depth))
    _, gradient = loss_and_grad(open_with(s, arrays), x, target, weight, probe, depth)
    @test size.(gradient) == size.(arrays)
    for seed in 1:2
        direction = random_direction(arrays, seed)
        if !s.train_encoder
            foreach(i -> fill!(direction[i], 0), 1:2)
            @test all(iszero, gradient[1]) && all(iszero, gradient[2])
        end
        quotient = difference_quotient(loss, arrays, direction; step)
        @test abs(inner(gradient, direction) - quotient) <= tolerance * norm(norm.(gradient))
    end
    return nothing
end

@testset "the gradient is the difference quotient: $name" for (name, changes, scale) in [
        ("1 state", (; n_state = 1), 0.6),
        ("50 states", (; n_state = 50), 0.6),
        ("51 states", (; n_state = 51), 0.6),
        ("no encoder", (; n_state = nothing, n_outputs = 3), 0.6),
        ("affine", (; hidden_layer_sizes = Int[]), 0.6),
        ("anderson, relu, log loss", (; solver = "anderson", activation = "relu", loss = "log_loss"), 0.6),
        ("newton, logistic", (; solver = "newton", activation = "logistic"), 0.6),
        ("fixed point, two hidden layers", (; solver = "fixed_point", hidden_layer_sizes = [5, 4]), 0.6),
        ("frozen encoder", (; train_encoder = false), 0.6),
        ("contractive", (; stability = "contractive", hidden_layer_sizes = [5, 9], contraction = 0.7), 3.0),
        ("finite horizon", (; horizon = 1.5, loss = "log_loss"), 0.6),
        ("finite horizon, contractive", (; horizon = 1.5, stability = "contractive"), 3.0),
        ("unrolled", (; adjoint = "unrolled"), 0.6),
        ("unrolled anderson", (; adjoint = "unrolled", solver = "anderson", stability = "contractive"), 3.0),
        ("unrolled broyden", (; adjoint = "unrolled", solver = "broyden", stability = "contractive"), 3.0),
        (
            "monotone",
            (; stability = "monotone", hidden_layer_sizes = Int[], solver = "peaceman_rachford"), 0.6,
        ),
        (
            "unrolled, monotone",
            (;
                stability = "monotone", hidden_layer_sizes = Int[], solver = "peaceman_rachford",
                adjoint = "unrolled",
            ), 0.6,
        ),
        ("unrolled fixed point", (; adjoint = "unrolled", solver = "fixed_point", stability = "contractive"), 3.0),
        # Without the constant z* in the penalty the quotient could not be that of a gradient, so
        # its z* is an equilibrium that no parameter moves: the cell has no hidden layer and is
        # linear, so that the Jacobian does not depend on z*.
        ("jacobian", (; hidden_layer_sizes = Int[], stability = "jacobian", jacobian_penalty = 0.7), 0.6),
    ]
    check_gradient(settings(; changes...), scale)
end

@testset "the gradient of a fixed depth, from $init" for init in ("cell", "zero")
    check_gradient(settings(; init, stability = "contractive"), 3.0; depth = 3)
end

@testset "the Jacobian penalty ($activation)" for activation in ("tanh", "logistic", "relu", "identity")
    cell = PyDEQ.Network([4, 5, 3, 4], Symbol(activation))
    rng = Xoshiro(3)
    flat, v = randn(rng, cell.n_parameters), randn(rng, 4, 6)
    probe = [1.0, -1.0, 1.0, 1.0]
    h = randn(rng, 4, 6)
    found = PyDEQ.jacobian_estimate(cell, flat, v .- h, h, probe)
    step = 1.0e-6
    for j in 1:6
        row = map(1:4) do i
            e = step .* ((1:4) .== i)
            probe' * (cell(flat, v[:, j:j] .+ e) - cell(flat, v[:, j:j] .- e)) / (2step)
        end
        @test found[j] ≈ sum(abs2, only.(row)) rtol = 1.0e-6
    end
    rows = randn(rng, 4, 6)
    jacobian = PyDEQ.Jacobian(PyDEQ.Cell(cell, flat, v), v, zero(v))
    pulled, pushed = similar(v), similar(v)
    @test PyDEQ.apply!(pulled, jacobian, rows, true) ≈ PyDEQ.pull(cell, flat, v, rows)
    @test dot(PyDEQ.apply!(pushed, jacobian, v, false), rows) ≈ dot(v, pulled)
    penalty(flat) = sum(PyDEQ.jacobian_estimate(cell, flat, v .- h, h, probe))
    gradient = only(Zygote.gradient(penalty, flat))
    direction = only(random_direction([flat], 1))
    quotient = difference_quotient(a -> penalty(only(a)), [flat], [direction]; step = 1.0e-4)
    @test abs(gradient' * direction - quotient) <= 1.0e-7 * norm(gradient)
end

@testset "jfb is one application at the equilibrium" begin
    s = settings(; adjoint = "jfb", n_state = nothing, n_outputs = 3, hidden_layer_sizes = Int[], alpha = 0.0)
    arrays = random_arrays(s)
    x, target, weight = random_batch(s)
    z = equilibrium(open_with(s, arrays), x).state
    _, gradient = loss_and_grad(open_with(s, arrays), x, target, weight, probe_of(s))
    dz = 2 .* (z .- target) ./ 3 .* weight' ./ sum(weight)
    @test off_by(gradient[1], dz * (z .+ x)') < 1.0e-9
    @test off_by(gradient[2], vec(sum(dz; dims = 2))) < 1.0e-9
end

@testset "float32" begin
    s = settings(;
        n_state = 51, stability = "contractive", loss = "log_loss", abstol = 2.0e-6,
        reltol = 2.0e-6, ode_abstol = 1.0e-6, ode_reltol = 1.0e-6,
    )
    arrays = random_arrays(s; scale = 3.0)
    batch = random_batch(s)
    _, expected = loss_and_grad(open_with((; s..., TIGHT...), arrays), batch..., probe_of(s))
    loss, found = loss_and_grad(
        open_with(s, [Float32.(a) for a in arrays]), (Float32.(b) for b in batch)...,
        probe_of(s, Float32),
    )
    @test loss isa Float64
    @test all(eltype(g) == Float32 for g in found)
    largest = maximum(maximum(abs, e) for e in expected)
    @test all(maximum(abs, f .- e) <= 2.0e-3 * max(maximum(abs, e), 1.0e-3 * largest) for (f, e) in zip(found, expected))
end

@testset "without Zygote as with it: $(changes)" for changes in [
        (; stability = "contractive", solver = "anderson", loss = "log_loss", hidden_layer_sizes = [5, 9]),
        (; activation = "logistic", adjoint = "jfb"),
        (; n_state = nothing, n_outputs = 3, activation = "relu", solver = "fixed_point"),
        (; stability = "monotone", hidden_layer_sizes = Int[], solver = "peaceman_rachford"),
        (; stability = "jacobian", jacobian_penalty = 0.7, hidden_layer_sizes = [5, 9]),
        (; stability = "jacobian", jacobian_penalty = 0.7, activation = "logistic"),
        (; stability = "jacobian", jacobian_penalty = 0.7, hidden_layer_sizes = Int[], init = "zero"),
    ]
    s = settings(; changes...)
    x, target, weight = random_batch(s)
    weight[2] = 0
    session = open_with(s, random_arrays(s))
    @test PyDEQ.goes_by_hand(session, 0)
    found, back = PyDEQ.pass_by_hand(session, x, target, weight, probe_of(s), PyDEQ.Tape(), 0)
    expected, general = PyDEQ.pass_by_zygote(session, x, target, weight, probe_of(s), PyDEQ.Tape())
    @test found ≈ expected rtol = 1.0e-12
    @test off_by(back(), general()) < 1.0e-8
end
