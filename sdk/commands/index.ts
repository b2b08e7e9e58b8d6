/** The commands of the command line: one file and one line each. */

import { chat } from "./chat.ts";
import type { Command } from "./command.ts";
import { compile } from "./compile.ts";
import { doctor } from "./doctor.ts";
import { evalCommand } from "./eval.ts";
import { exportCommand } from "./export.ts";
import { finetune } from "./finetune.ts";
import { generate } from "./generate.ts";
import { inspect } from "./inspect.ts";
import { merge } from "./merge.ts";
import { pull } from "./pull.ts";
import { serve } from "./serve.ts";

export const commands: Readonly<Record<string, Command>> = {
  pull,
  compile,
  chat,
  generate,
  finetune,
  eval: evalCommand,
  merge,
  export: exportCommand,
  serve,
  inspect,
  doctor,
};
