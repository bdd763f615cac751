# What a session is opened with, as the specs of model, search and training.

"""What is minimised and how; the fields are those of Python's `pydeq.model.spec.OptimizerSpec`."""
struct Training
    loss::Symbol
    learning_rate::Float64
    alpha::Float64
    jacobian_penalty::Float64
    init_penalty::Float64
    train_encoder::Bool
end

const OPTIONAL_SETTINGS = Dict{Symbol, Any}(
    :init => "cell", :init_penalty => 0.0, :layers => nothing, :opt_count => 0, :opt_m => nothing,
    :opt_v => nothing,
)

function model_of(settings)
    model = Model(
        settings[:n_features]::Int, settings[:n_outputs]::Int,
        settings[:n_state]::Union{Int, Nothing}, settings[:hidden_layer_sizes]::Vector{Int},
        Symbol(settings[:activation]::String), Symbol(settings[:stability]::String),
        settings[:contraction]::Float64, settings[:horizon]::Union{Float64, Nothing},
    )
    parts = something(settings[:layers], (nothing, nothing, nothing, nothing))
    init = something(parts[4], Symbol(settings[:init]::String))
    init isa Symbol && check_choice("init", init, (:cell, :zero))
    return with_layers(model, parts[1], parts[2], parts[3], init)
end

function solver_of(settings)
    number(name) = settings[name]::Float64
    return Solver(
        Symbol(settings[:solver]::String), number(:abstol), number(:reltol), number(:ode_abstol),
        number(:ode_reltol), settings[:max_steps]::Int, Symbol(settings[:adjoint]::String),
    )
end

function training_of(settings)
    number(name) = settings[name]::Float64
    return Training(
        Symbol(settings[:loss]::String), number(:learning_rate), number(:alpha),
        number(:jacobian_penalty), number(:init_penalty), settings[:train_encoder]::Bool,
    )
end

function check(model::Model, solver::Solver, training::Training)
    check_choice("solver", solver.name, SOLVERS)
    check_choice("adjoint", solver.adjoint, ADJOINTS)
    check_choice("loss", training.loss, LOSSES)
    if model.horizon === nothing && solver.adjoint === :unrolled && !(solver.name in UNROLLED)
        throw(
            ArgumentError(
                "The Julia engine has adjoint=\"unrolled\" for $(join(UNROLLED, ", ")). Take one of " *
                    "these, or adjoint=\"implicit\" or \"jfb\"; found $(solver.name).",
            ),
        )
    end
    # Said now, if a package is not there.
    solver.name in ODE_METHODS && ode_algorithm(Val(solver.name))
    if model.horizon !== nothing
        check_loaded(integrate, "a finite horizon", "DiffEqFlux, OrdinaryDiffEqTsit5, Zygote")
        check_loaded(pass_by_zygote, "a finite horizon", "DiffEqFlux, OrdinaryDiffEqTsit5, Zygote")
    elseif solver.adjoint === :unrolled
        check_loaded(pass_by_zygote, "adjoint=\"unrolled\"", "Zygote")
    end
    if solver.name === :peaceman_rachford && model.stability !== :monotone
        throw(
            ArgumentError(
                "solver=\"peaceman_rachford\" needs stability=\"monotone\"; found " *
                    "$(repr(string(model.stability))).",
            ),
        )
    end
    return nothing
end
