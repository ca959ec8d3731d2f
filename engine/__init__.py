"""Floor 2: the only room that knows DeepSpeed. Turns batches into optimiser steps, and steps into checkpoints."""
