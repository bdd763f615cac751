# Gradients by Zygote, for what `pass_by_hand` does not know.
module PyDEQZygoteExt

using PyDEQ: PyDEQ, Session, Tape, batch_loss
using Zygote: Zygote

function PyDEQ.pass_by_zygote(session::Session, x, target, weight, probe, tape::Tape)
    value, back = Zygote.pullback(session.theta) do theta
        batch_loss(theta, session, x, target, weight, probe, tape)
    end
    return value, () -> only(back(one(value)))
end

end
