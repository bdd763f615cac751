using PyDEQ: apply!, bound_with_slopes, described_layer, described_network, linearize, move!, on_host

# The layers are written out by hand: Lux has the same, and differences have their gradients.

const IMAGE, STATE = (6, 7, 2), (3, 4, 4)

"""A layer of these fields, as Python describes it."""
function made(kind, name, given, gives; stride = 1, padding = "zero", options...)
    all_of = (; stride, padding, options...)
    names, values_of = String[string(key) for key in keys(all_of)], Any[values(all_of)...]
    return described_layer(kind, name, collect(given), collect(gives), names, values_of)
end

same(kind, name = "", shape = STATE; options...) = made(kind, name, shape, shape; options...)

function every_layer()
    block = [same("Conv", "1.0"; kernel_size = 3), same("Activation"; activation = "tanh")]
    layers = [
        made("Conv", "0", IMAGE, STATE; kernel_size = 3, stride = 2),
        same("Activation"; activation = "relu"),
        same("Residual", "1"; layers = block),
        same("GroupNorm", "2"; groups = 2, epsilon = 1.0e-3),
        made("MeanPool", "", STATE, (1, 2, 4); size = 2), same("MaxPool", "", (1, 2, 4); size = 1),
        made("Flatten", "", (1, 2, 4), (8,)), made("Dense", "3", (8,), (5,)),
        same("Activation", "", (5,); activation = "logistic"),
    ]
    return described_network(layers, IMAGE, (5,))
end

lux_chain() = Lux.Chain(
    Lux.Conv((3, 3), 2 => 4, Lux.relu; pad = 1, stride = 2, cross_correlation = true),
    Lux.SkipConnection(Lux.Conv((3, 3), 4 => 4, tanh; pad = 1, cross_correlation = true), +),
    Lux.GroupNorm(4, 2; epsilon = 1.0e-3), Lux.MeanPool((2, 2)), Lux.MaxPool((1, 1)),
    Lux.FlattenLayer(), Lux.Dense(8 => 5, Lux.sigmoid),
)

"""Parameters for both: a flat vector, and Lux's."""
function parameters_of(network, chain)
    arrays = [0.5 .* randn(Xoshiro(i), shape) for (i, shape) in enumerate(network.shapes)]
    named(kinds, at) = NamedTuple{kinds}((arrays[at], arrays[at + 1]))
    own = (:weight, :bias)
    ps = (
        layer_1 = named(own, 1), layer_2 = named(own, 3), layer_3 = named((:scale, :bias), 5),
        layer_4 = (;), layer_5 = (;), layer_6 = (;), layer_7 = named(own, 7),
    )
    return reduce(vcat, vec.(arrays)), ps
end

@testset "layers" begin
    network, chain = every_layer(), lux_chain()
    flat, ps = parameters_of(network, chain)
    v = randn(Xoshiro(9), prod(IMAGE), 3)

    @testset "are Lux's" begin
        st = Lux.initialstates(Xoshiro(0), chain)
        expected, _ = chain(reshape(v, IMAGE..., 3), ps, st)
        @test off_by(network(flat, v), expected) < 1.0e-12
    end

    @testset "gradients are those of differences" begin
        target = randn(Xoshiro(3), 5, 3)
        loss(flat, v) = sum(abs2, network(flat, v) .- target)
        gradient = Zygote.gradient(loss, flat, v)
        direction = random_direction([flat, v], 4)
        expected = difference_quotient(arrays -> loss(arrays...), [flat, v], direction; step = 1.0e-4)
        @test inner(collect(gradient), direction) ≈ expected rtol = 1.0e-7
    end

    # A cell: as many values come out as go in.
    layers = [same("GroupNorm", "0"; groups = 1, epsilon = 1.0e-5), same("Conv", "1"; kernel_size = 2, padding = "circular")]
    cell = described_network(layers, STATE, STATE)
    flat = randn(Xoshiro(5), cell.n_parameters)
    u, h = (randn(Xoshiro(i), prod(STATE), 3) for i in 6:7)

    @testset "products with the Jacobian, of fewer and fewer samples" begin
        here = on_host(cell, flat, h)
        jacobian, step = linearize(here, u, h), 1.0e-6
        t, row = (randn(Xoshiro(i), prod(STATE), 3) for i in 8:9)
        f(u) = cell(flat, u, h)
        expected = (f(u .+ step .* t) .- f(u .- step .* t)) ./ 2step
        @test off_by(apply!(similar(t), jacobian, t, false), expected) < 1.0e-7
        pulled = apply!(similar(t), jacobian, row, true)
        @test sum(pulled .* t) ≈ sum(row .* expected) rtol = 1.0e-7
        move!(jacobian, 3, 1)
        @test apply!(zeros(prod(STATE), 1), jacobian, row[:, 3:3], true) ≈ pulled[:, 3:3]
    end

    @testset "the bound of a convolution with $padding padding" for padding in ("zero", "circular")
        conv = same("Conv", "0"; kernel_size = 3, padding)
        weight = randn(Xoshiro(2), 3, 3, 4, 4)
        network = described_network([conv], STATE, STATE)
        flat = [vec(weight); zeros(4)]
        n = prod(STATE)
        largest = opnorm(network(flat, Matrix(1.0I, n, n)))
        bound, (slope, _) = bound_with_slopes(conv, (weight, zeros(4)))
        @test largest <= exp(bound) * (1 + 1.0e-12)
        @test exp(bound) < (padding == "circular" ? 1.05 : 1.5) * largest
        log_bound(weight) = first(bound_with_slopes(conv, (weight, zeros(4))))
        direction = only(random_direction([weight], 1))
        expected = difference_quotient(arrays -> log_bound(only(arrays)), [weight], [direction]; step = 1.0e-5)
        @test sum(slope .* direction) ≈ expected rtol = 1.0e-6
    end

    @testset "several resolutions: gradients are those of differences" begin
        fine, coarse, row = (3, 5, 2), (2, 3, 3), (48,)
        images = Any[collect(fine), collect(coarse)]
        branches = Any[
            Any[same("Conv", "0.0", fine; kernel_size = 3), same("Activation", "", fine; activation = "tanh")],
            Any[same("Residual", "0.1", coarse; layers = [same("Conv", "0.1", coarse; kernel_size = 1)])],
        ]
        paths = Any[
            Any[0, 1, 2, made("Conv", "1.0.1", coarse, (2, 3, 2); kernel_size = 1)],
            Any[1, 0, 2, made("Conv", "1.1.0", fine, coarse; kernel_size = 3, stride = 2)],
        ]
        layers = [same("Branches", "0", row; images, made = images, branches), same("Fuse", "1", row; images, paths)]
        network = described_network(layers, row, row)
        flat, v, target = (randn(Xoshiro(i), n...) for (i, n) in enumerate(((network.n_parameters,), (48, 3), (48, 3))))
        loss(flat, v) = sum(abs2, network(flat, v) .- target)
        gradient = Zygote.gradient(loss, flat, v)
        direction = random_direction([flat, v], 4)
        expected = difference_quotient(arrays -> loss(arrays...), [flat, v], direction; step = 1.0e-4)
        @test inner(collect(gradient), direction) ≈ expected rtol = 1.0e-7
    end

    @testset "the monotone cell's convolution, on a torus" begin
        kernel_of(k, seed) = randn(Xoshiro(seed), k, k, 4, 4)
        matrix_of(kernel) = begin
            conv = same("Conv", "0"; kernel_size = size(kernel, 1), padding = "circular")
            described_network([conv], STATE, STATE)([vec(kernel); zeros(4)], Matrix(1.0I, 48, 48))
        end
        for k in (1, 2, 3)
            a, b = kernel_of(k, 1), kernel_of(k, 2)
            A, B = matrix_of(a), matrix_of(b)
            @test matrix_of(PyDEQ.composed(a, b)) ≈ B - B' - A' * A
            g = randn(Xoshiro(3), 2k - 1, 2k - 1, 4, 4)
            direction = random_direction([a, b], 5)
            expected = difference_quotient(ab -> dot(g, PyDEQ.composed(ab...)), [a, b], direction)
            @test inner(PyDEQ.decomposed(a, g), direction) ≈ expected rtol = 1.0e-8
        end
    end
end

@testset "a convolution is Lux's (kernel $kernel, stride $stride, circular $is_circular)" for
    (image, kernel, stride, is_circular) in [
        ((6, 5), (2, 2), 1, false), ((9, 8), (5, 5), 2, false), ((4, 4), (4, 4), 3, false),
        ((3, 3), (5, 5), 1, false), ((7, 6), (3, 3), 2, true), ((5, 5), (1, 1), 1, false),
    ]
    layer = PyDEQ.ConvLayer("", (kernel..., 3, 2), stride, is_circular, image)
    x, weight = randn(Xoshiro(0), image..., 3, 4), randn(Xoshiro(1), kernel..., 3, 2)
    patches, (before, after) = PyDEQ.patches_of(layer), PyDEQ.sides(layer)
    pad = is_circular ? 0 : (before, after, before, after)
    seen = is_circular ? x[PyDEQ.around(layer, image[1]), PyDEQ.around(layer, image[2]), :, :] : x
    lux = Lux.Conv(kernel, 3 => 2; stride, pad, cross_correlation = true, use_bias = false)
    value, back = Zygote.pullback((x, weight) -> first(lux(x, (; weight), (;))), seen, weight)
    row = randn(Xoshiro(2), size(value))
    to_seen, to_weight = back(row)
    inner(a) = permutedims(a, (3, 1, 2, 4))
    pool, own = PyDEQ.Pool(), PyDEQ.inner_kernel(weight)
    @test PyDEQ.convolve(pool, inner(seen), own, patches) ≈ inner(value)
    @test PyDEQ.pull_convolution(pool, inner(row), own, patches) ≈ inner(to_seen)
    found = PyDEQ.weight_of_convolution(pool, inner(seen), inner(row), patches)
    @test PyDEQ.outer_kernel(found) ≈ to_weight
end

@testset "pools by loops are those of whole arrays (mean $is_mean, size $size, $channels channels)" for
    (is_mean, size, channels) in [(true, 2, 3), (false, 2, 17), (false, 3, 32), (true, 1, 16)]

    layer = PyDEQ.PoolLayer(is_mean, size, (7, 8, channels), ((7, 8) .÷ size..., channels))
    pool = PyDEQ.Pool()
    a = Float32.(rand(Xoshiro(1), -2:2, channels, 7, 8, 3))  # with equal ones
    row = randn(Xoshiro(2), Float32, channels, layer.gives[1:2]..., 3)
    value, memory = PyDEQ.forward(layer, pool, (), a)
    @test value == PyDEQ.pooled(layer, nothing, a)
    @test PyDEQ.pull(layer, pool, (), memory, row) ≈ PyDEQ.spread(layer, nothing, memory, row)
    a[2, 3, 3, 2] = NaN
    @test isequal(first(PyDEQ.forward(layer, pool, (), a)), PyDEQ.pooled(layer, nothing, a))
end
