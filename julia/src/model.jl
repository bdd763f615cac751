# What a model is: encoder, cell, decoder, and how its cell is kept stable.

const STABILITIES = (:none, :jacobian, :contractive, :monotone)

"""
    Model(n_features, n_outputs, n_state, hidden_layer_sizes, activation, stability, contraction,
        horizon)

The mathematics of one model; the fields are those of Python's `pydeq.model.spec.ModelSpec`.

Its parameters are one flat vector: encoder, cell, decoder, first guess, each as [`Network`](@ref)
keeps them. Without `n_state` the state is the input itself, and encoder and decoder have no layers.
"""
struct Model
    encoder::AbstractNetwork
    cell::AbstractNetwork
    decoder::AbstractNetwork
    init::Union{Symbol, AbstractNetwork}  # u(0): `cell`, f(0, h); `zero`, 0; or what it makes of h
    cell_shapes::Vector{Dims}  # of the cell's parameters as they are trained
    parts::Vector{Dims}  # shapes of the four networks' flat parameters
    width::Int
    stability::Symbol
    contraction::Float64
    horizon::Union{Float64, Nothing}
end

function Model(
        n_features::Int, n_outputs::Int, n_state::Union{Int, Nothing},
        hidden_layer_sizes::Vector{Int}, activation::Symbol, stability::Symbol,
        contraction::Float64, horizon::Union{Float64, Nothing},
    )
    check_choice("activation", activation, keys(ACTIVATIONS))
    check_choice("stability", stability, STABILITIES)
    if n_state === nothing && n_outputs != n_features
        throw(
            ArgumentError(
                "Without n_state the state is the input and the output, so that n_outputs is " *
                    "n_features; found $n_outputs and $n_features.",
            ),
        )
    end
    width = something(n_state, n_features)
    outer(widths) = Network(n_state === nothing ? widths[1:1] : widths, activation)
    encoder, decoder = outer([n_features, width]), outer([width, n_outputs])
    is_monotone = stability === :monotone
    if is_monotone && !isempty(hidden_layer_sizes)
        throw(ArgumentError("The monotone cell has no hidden layer; found $hidden_layer_sizes."))
    end
    cell = Network([width; hidden_layer_sizes; width], activation; is_monotone)
    return Model(encoder, cell, decoder, :cell, width, stability, contraction, horizon)
end

function Model(encoder, cell, decoder, init, width, stability, contraction, horizon)
    cell_shapes = trained_shapes(cell)
    n_init = init isa Symbol ? 0 : init.n_parameters
    sizes = (encoder.n_parameters, sum(prod, cell_shapes; init = 0), decoder.n_parameters, n_init)
    return Model(
        encoder, cell, decoder, init, cell_shapes, [(n,) for n in sizes], width, stability,
        contraction, horizon,
    )
end

"""The shapes of a cell's parameters as they are trained: a monotone one has a skew."""
trained_shapes(cell::Network) = cell.is_monotone ? [cell.shapes[1:1]; cell.shapes] : cell.shapes

function check_choice(what, found::Symbol, choices)
    found in choices && return nothing
    known = join(sort!(string.(collect(choices))), ", ", " and ")
    throw(ArgumentError("The Julia engine has $what $known; found $(repr(string(found)))."))
end

"""Names of the parameters in their order, as in Python's `pydeq.model.params.parameter_shapes`."""
function parameter_names(model::Model)
    (; encoder, cell, decoder, init) = model
    names = parameter_names(cell, ["cell.$(i - 1)" for i in 1:n_layers(cell)])
    model.stability === :monotone && insert!(names, 2, "cell.0.skew")
    of_init = init isa Symbol ? String[] : parameter_names(init, ["init"])
    return [parameter_names(encoder, ["encoder"]); names; parameter_names(decoder, ["decoder"]); of_init]
end

function parameter_names(network::Network, names)
    return [name * kind for name in names[1:n_layers(network)] for kind in (".weight", ".bias")]
end

"""Shapes of the parameters in their order."""
function parameter_shapes(model::Model)
    of_init = model.init isa Symbol ? Dims[] : model.init.shapes
    return [model.encoder.shapes; model.cell_shapes; model.decoder.shapes; of_init]
end

"""Indices of the encoder's parameters in the flat vector."""
encoder_range(model::Model) = 1:(model.encoder.n_parameters)

"""
    parts(model, theta) -> [encoder, cell, decoder, init]

Return the flat parameters of the four networks.
"""
parts(model::Model, theta::AbstractVector) = cut(theta, model.parts)

"""
    acting_cell(model, flat)

Return the cell's flat parameters as they act.

A contractive cell has each of its L weights (not its biases) multiplied by
``min(1, (contraction / prod_i sigma_i)^{1/L})``, with ``sigma_i`` the bound of [`log_norm_bound`](@ref):
its Lipschitz constant is then at most `contraction`, because every activation is 1-Lipschitz.

A monotone cell has the weight ``W = B - B^T - A^T A`` of its parameters A and B (Winston and Kolter
2020, proposition 1, with m = 1).
"""
acting_cell(model::Model, flat::AbstractVector) = acting_cell(model.cell, model, flat)

function acting_cell(cell::Network, model::Model, flat::AbstractVector)
    if cell.is_monotone
        a, b, bias = cut(flat, model.cell_shapes)
        return glue([monotone_weight(a, b), bias])
    end
    model.stability === :contractive || return flat
    arrays = cut(flat, model.cell.shapes)
    n = n_layers(cell)
    log_product = sum(log_norm_bound(arrays[2i - 1]) for i in 1:n)
    scale = contraction_scale(log_product, n, model.contraction)
    return glue([isodd(i) ? scale .* arrays[i] : arrays[i] for i in 1:(2n)])
end

"""Return u(0) as [`first_guess`](@ref) does, or nothing where a search begins there by itself."""
function start_of(model::Model, flat, init, h)
    return model.init === :cell && model.horizon === nothing ? nothing : first_guess(model, flat, init, h)
end

"""
    first_guess(model, flat, init, h) -> (width, n)

Return u(0): `flat` are the parameters of the cell as they act, `init` those of the guess.
"""
function first_guess(model::Model, flat, init, h)
    model.init === :cell && return model.cell(flat, zero(h), h)
    return model.init === :zero ? zero(h) : model.init(init, h)
end

"""
    trajectory(model, theta, x, depth) -> (width, n, depth + 1)

Return the fixed-point iterates of the samples `x` (n_features, n), from u(0).
"""
function trajectory(model::Model, theta::AbstractVector, x::AbstractMatrix, depth::Int)
    encoder, cell, _, init = parts(model, theta)
    h = model.encoder(encoder, x)
    flat = acting_cell(model, cell)
    u = first_guess(model, flat, init, h)
    iterates = similar(u, size(u)..., depth + 1)
    iterates[:, :, 1] = u
    for k in 1:depth
        u = model.cell(flat, u, h)
        iterates[:, :, k + 1] = u
    end
    return iterates
end
