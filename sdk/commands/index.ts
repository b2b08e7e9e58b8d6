/** The commands of the command line: one file and one line each. */

import { chat } from "./chat.ts";
import type { Command } from "./command.ts";
import { compile } from "./compile.ts";
import { doctor } from "./doctor.ts";
import { finetune } from "./finetune.ts";
import { generate } from "./generate.ts";
import { inspect } from "./inspect.ts";
import { serve } from "./serve.ts";

export const commands: Readonly<Record<string, Command>> = {
  compile,
  chat,
  generate,
  finetune,
  serve,
  inspect,
  doctor,
};
