-- Health of Broker, MessageQueue and Stream for Argo CD: what the operator says in the conditions, of the generation that is
-- there now. Without it Argo CD calls every object healthy that exists.
local health = { status = "Progressing", message = "the operator has not looked at it yet" }
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  health.message = "the operator has not looked at this generation yet"
  return health
end
local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local function told(condition)
  return (condition.reason or "") .. ": " .. (condition.message or "")
end
if conditions.Stalled ~= nil and conditions.Stalled.status == "True" then
  health.status = "Degraded"
  health.message = told(conditions.Stalled)
elseif conditions.Ready ~= nil and conditions.Ready.status == "True" then
  health.status = "Healthy"
  health.message = told(conditions.Ready)
elseif conditions.Reconciling ~= nil and conditions.Reconciling.status == "True" then
  health.message = told(conditions.Reconciling)
elseif conditions.Ready ~= nil and conditions.Ready.status == "False" then
  health.status = "Degraded"
  health.message = told(conditions.Ready)
end
return health
